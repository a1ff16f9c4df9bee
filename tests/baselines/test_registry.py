"""Registration, options from signatures and text, methods in files and in installed packages."""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from baselines.adapter import AdapterError, LoraAdapter, LowRankDelta
from baselines.options import PluginError
from baselines.registry import (
    METHODS,
    Registry,
    adapter_method,
    fit_method,
    layer_method,
    parse_method,
    policy_method,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _restored_methods() -> Iterator[None]:
    before = METHODS.names()
    yield
    for name in METHODS.names():
        if name not in before:
            METHODS.unregister(name)


def delta(seed: int, d_out: int = 3, d_in: int = 4, rank: int = 2) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    return LowRankDelta(
        torch.randn(d_out, rank, generator=generator), torch.randn(rank, d_in, generator=generator)
    )


def adapter(seed: int, layers: str = "ab", name: str = "") -> LoraAdapter:
    return LoraAdapter({layer: delta(seed + i) for i, layer in enumerate(layers)}, name)


# --- the registry


def test_registry_keeps_order_and_refuses_duplicates():
    registry: Registry[int] = Registry("judge")
    registry.register("b", 1)
    registry.register("a", 2)
    assert registry.names() == ("b", "a")
    assert registry.get("a") == 2
    with pytest.raises(PluginError, match="there is a judge 'a' already"):
        registry.register("a", 3)
    assert registry.get("a") == 2
    for name in ("", "a:b", "a,b", "a/b", "a=b", "a b"):
        with pytest.raises(PluginError, match="cannot name a judge"):
            registry.register(name, 3)


def test_registry_names_the_nearest():
    with pytest.raises(PluginError, match="no method 'zplora'; did you mean 'ziplora'"):
        METHODS.get("zplora")
    with pytest.raises(PluginError, match="there is no judge 'x'; there are: none"):
        Registry("judge").get("x")


# --- options from signatures


def declare(source: str, kind: str = "layer", **names: Any) -> Callable[..., Any]:
    """Define a function from its parameter list and decorate it as method "tried"."""
    scope: dict[str, Any] = {"Literal": Literal, **names}
    exec(f"def tried({source}):\n    'Do nothing.'\n    return deltas[0]", scope)
    decorate = {
        "layer": layer_method,
        "adapter": adapter_method,
        "fit": fit_method,
        "policy": policy_method,
    }[kind]
    return decorate("tried")(scope["tried"])


def test_reads_options_off_the_signature():
    declare(
        "deltas, *, rng, n: int = 2, x: float = 1, s: str = 'a', b: bool = False, "
        "c: Literal['p', 'q'] = 'q', k: Literal[1, 2] = 1, o: int | None = None, "
        "y: 'float | None' = 0.5"
    )
    method = METHODS.get("tried")
    assert list(method.parameters) == ["n", "x", "s", "b", "c", "k", "o", "y"]
    assert method.resolve({}) == {
        "n": 2,
        "x": 1.0,
        "s": "a",
        "b": False,
        "c": "q",
        "k": 1,
        "o": None,
        "y": 0.5,
    }
    assert method.parameters["x"].default == 1.0
    assert isinstance(method.parameters["x"].default, float)
    assert method.summary == "Do nothing."


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("deltas, *, weight=0.5", "layer", "'weight' needs an annotation and a default"),
        ("deltas, *, weight: float", "layer", "'weight' needs an annotation and a default"),
        ("deltas, *, weight: list = ()", "layer", "'weight' is annotated"),
        ("deltas, *, weight: int | str = 1", "layer", "'weight' is annotated"),
        ("deltas, *, weight: 'Missing' = 1", "layer", "<string>:1.*cannot be read.*Missing"),
        ("deltas, *, weight: int = 0.5", "layer", "default of 'weight' is 0.5, .* an int"),
        ("deltas, *, weight: int = '1'", "layer", "default of 'weight' is '1', .* an int"),
        ("deltas, *, weight: int = None", "layer", "default of 'weight' is None"),
        ("deltas, *, weight: int = True", "layer", "default of 'weight' is True"),
        ("deltas, *, weight: Literal['a'] = 'b'", "layer", "must be one of a"),
        ("deltas, weight: float = 0.5", "layer", "deltas, weight before its options: .* 1 arg"),
        ("*deltas", "layer", "no \\*args"),
        ("deltas, **kwargs", "layer", "no \\*args, no \\*\\*kwargs"),
        ("*, weight: float = 0.5", "layer", "takes nothing before"),
        ("deltas, *, seed: int = 0", "layer", "'seed' cannot be an option"),
        ("deltas, *, rng", "adapter", "'rng' cannot be an option"),
        ("deltas, *, task: int = 0", "adapter", "'task' cannot be an option"),
        ("deltas, *, adapters: int = 0", "layer", "'adapters' cannot be an option"),
        ("deltas", "fit", "must take 2 arguments"),
        ("deltas, step", "policy", "must take 1 argument,"),
        ("deltas, *, rng", "policy", "'rng' cannot be an option"),
    ],
)
def test_refuses_signatures_it_does_not_understand(source: str, kind: str, message: str):
    with pytest.raises(PluginError, match=message):
        declare(source, kind)
    assert "tried" not in METHODS.names()


def test_refusal_names_file_and_method():
    with pytest.raises(PluginError, match=rf"{Path(__file__).name}:\d+: method 'tried'"):

        @layer_method("tried")
        def tried(deltas: Sequence[LowRankDelta], *, w: object = 0) -> LowRankDelta:
            return deltas[0]

    with pytest.raises(PluginError, match="must be a function"):
        layer_method("tried")(len)


VALUES = "deltas, *, n: int = 1, x: float = 1.0, s: str = '', b: bool = False, "
VALUES += "c: Literal['p', 'q'] = 'q', k: Literal[1, 2] = 1, o: float | None = None"


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("n", "12", 12),
        ("n", -3, -3),
        ("x", "1e-3", 1e-3),
        ("x", 2, 2.0),
        ("s", "a b", "a b"),
        ("s", "none", "none"),
        ("b", "True", True),
        ("b", "false", False),
        ("b", True, True),
        ("c", "p", "p"),
        ("k", "2", 2),
        ("k", 2, 2),
        ("o", "none", None),
        ("o", None, None),
        ("o", "0.5", 0.5),
    ],
)
def test_reads_values(name: str, given: object, value: object):
    declare(VALUES)
    result = METHODS.get("tried").resolve({name: given})[name]
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("n", "many", "option 'n' of method 'tried' must be an int, got 'many'"),
        ("n", "1.5", "must be an int, got '1.5'"),
        ("n", 1.5, "must be an int, got 1.5"),
        ("n", True, "must be an int, got True"),
        ("n", None, "must be an int, got None"),
        ("x", "nan", "must be a finite float, got 'nan'"),
        ("x", 10**400, "must be a finite float"),
        ("x", "", "must be a finite float, got ''"),
        ("s", 3, "must be text, got 3"),
        ("b", "1", "must be true or false, got '1'"),
        ("b", 1, "must be true or false, got 1"),
        ("c", "r", "must be one of p, q, got 'r'"),
        ("k", True, "must be one of 1, 2, got True"),
        ("o", "nothing", "must be a finite float or none, got 'nothing'"),
    ],
)
def test_refuses_values(name: str, given: object, message: str):
    declare(VALUES)
    with pytest.raises(PluginError, match=message):
        METHODS.get("tried").resolve({name: given})


def test_refuses_unknown_options():
    with pytest.raises(PluginError, match="no option 'stpes'; did you mean 'steps'"):
        METHODS.get("ziplora").resolve({"stpes": 1})
    with pytest.raises(PluginError, match="'base' has no option 'w'; there are: none"):
        METHODS.get("base")([adapter(0)], w=1)


# --- calling


def test_layer_method_keeps_the_order_of_adapters_and_fills_options():
    seen = []

    @layer_method("tried", paper="https://example.org")
    def tried(deltas: Sequence[LowRankDelta], *, weight: float = 0.5) -> LowRankDelta:
        """Take the last."""
        seen.append(([d.down[0, 0].item() for d in deltas], weight))
        return weight * deltas[-1]

    adapters = [adapter(seed, name=str(seed)) for seed in (5, 1, 3)]
    method = METHODS.get("tried")
    merged = method(adapters, weight="0.25")
    assert merged.layers == ("a", "b")
    assert seen == [([a.deltas[n].down[0, 0].item() for a in adapters], 0.25) for n in "ab"]
    torch.testing.assert_close(
        merged.deltas["b"].dense(), 0.25 * adapters[2].deltas["b"].dense(), rtol=1e-6, atol=1e-6
    )
    assert merged.name == "tried"
    assert merged.metadata == {
        "method": "tried",
        "method_options": "weight=0.25",
        "merged_from": "5, 1, 3",
    }
    assert (method.kind, method.paper) == ("layer", "https://example.org")
    assert method.source == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def test_sees_through_other_decorators():
    @layer_method("tried")
    @torch.no_grad()
    def tried(deltas: Sequence[LowRankDelta], *, weight: float = 0.5) -> LowRankDelta:
        return weight * deltas[0]

    method = METHODS.get("tried")
    assert list(method.parameters) == ["weight"]
    assert method.source == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def test_layer_method_gets_a_stream_for_each_layer():
    @layer_method("tried")
    def tried(deltas: Sequence[LowRankDelta], *, rng: torch.Generator) -> LowRankDelta:
        return deltas[0].scale_columns(torch.rand(deltas[0].shape[1], generator=rng))

    method = METHODS.get("tried")
    same = LoraAdapter({layer: delta(0) for layer in "abc"})
    merged = method([same], seed=1)
    columns = [merged.deltas[layer].down.tolist() for layer in "abc"]
    assert columns[0] != columns[1] != columns[2] != columns[0]
    alone = method([LoraAdapter({"b": delta(0)})], seed=1)
    assert torch.equal(alone.deltas["b"].down, merged.deltas["b"].down)
    assert method([same], seed=1).digest() == merged.digest()
    assert method([same], seed=2).digest() != merged.digest()


def test_adapter_and_fit_methods_get_seed_and_task():
    @adapter_method("tried_all")
    def tried_all(adapters: Sequence[LoraAdapter], *, seed: int, n: int = 1) -> LoraAdapter:
        return LoraAdapter({"a": (seed * n) * adapters[0].deltas["a"]}, metadata={"kept": "yes"})

    @fit_method("tried_fit")
    def tried_fit(adapters: Sequence[LoraAdapter], task: Any, *, seed: int) -> LoraAdapter:
        return LoraAdapter({"a": (seed * task) * adapters[1].deltas["a"]}, "mine")

    two = [adapter(0), adapter(1)]
    merged = METHODS.get("tried_all")(two, seed=3, n=2)
    assert torch.equal(merged.deltas["a"].up, 6 * two[0].deltas["a"].up)
    assert merged.metadata["kept"] == "yes"
    fitted = METHODS.get("tried_fit")(two, seed=3, task=5)  # type: ignore[arg-type]  # any task
    assert torch.equal(fitted.deltas["a"].up, 15 * two[1].deltas["a"].up)
    assert fitted.name == "mine"
    with pytest.raises(PluginError, match="'tried_fit' optimises for a pair: it needs"):
        METHODS.get("tried_fit")(two)


def test_half_precision_reaches_a_method_as_float32():
    @layer_method("tried")
    def tried(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
        assert deltas[0].up.dtype == torch.float32
        return deltas[0].to(dtype=torch.float16)

    merged = METHODS.get("tried")([adapter(0).to(dtype=torch.bfloat16)])
    assert merged.deltas["a"].up.dtype == torch.float32


def test_refuses_adapters_that_do_not_fit_together():
    direct_sum = METHODS.get("direct_sum")
    with pytest.raises(AdapterError, match="adapter dog updates b, adapter ink does not"):
        direct_sum([adapter(0, name="dog"), adapter(1, "a", name="ink")])
    other = LoraAdapter({"a": delta(0, d_in=9), "b": delta(0)}, "ink")
    with pytest.raises(AdapterError, match=r"layer 'a' is \(3, 4\) .* \(3, 9\) in adapter ink"):
        direct_sum([adapter(0), other])
    with pytest.raises(PluginError, match="given no adapter"):
        direct_sum([])


def test_refuses_results_that_are_no_merge():
    declare("deltas", weight=1)
    METHODS.unregister("tried")

    @layer_method("tried")
    def wrong_type(deltas: Sequence[LowRankDelta]) -> torch.Tensor:
        return deltas[0].dense()

    with pytest.raises(PluginError, match=r"Tensor.* for layer 'a', not a LowRankDelta of shape"):
        METHODS.get("tried")([adapter(0)])

    @layer_method("tried_shape")
    def wrong_shape(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
        return delta(0, d_in=7)

    with pytest.raises(PluginError, match=r"returned shape \(3, 7\) for layer 'a'"):
        METHODS.get("tried_shape")([adapter(0)])

    @adapter_method("tried_all")
    def wrong_all(adapters: Sequence[LoraAdapter]) -> dict[str, LowRankDelta]:
        return dict(adapters[0].deltas)

    with pytest.raises(PluginError, match="returned a dict, not a LoraAdapter"):
        METHODS.get("tried_all")([adapter(0)])


def test_decorated_function_stays_itself():
    function = declare("deltas, *, weight: float = 0.5")
    assert function(["x"]) == "x"


# --- from text


def test_parses_only_what_was_passed():
    method, options = parse_method("ziplora:steps=100,lr=1e-3")
    assert method is METHODS.get("ziplora")
    assert options == {"steps": 100, "lr": 1e-3}
    assert list(options) == ["steps", "lr"]
    assert parse_method("average") == (METHODS.get("average"), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zplora:steps=1", "did you mean 'ziplora'"),
        ("ZipLoRA", "did you mean 'ziplora'"),
        ("ziplora:steps=many", "option 'steps' of method 'ziplora' must be an int, got 'many'"),
        ("ziplora:steps", "'steps' is no option; write NAME:OPTION=VALUE"),
        ("ziplora:steps=1,,lr=1", "'' is no option"),
        ("ziplora:=1", "'=1' is no option"),
        ("ziplora:steps=1,steps=2", "option 'steps' is given twice"),
        ("ziplora:step=1", "did you mean 'steps'"),
        ("./nowhere.py:halves", "nowhere.py: no such file"),
        ("", "there is no method ''"),
    ],
)
def test_refuses_texts(text: str, message: str):
    with pytest.raises(PluginError, match=message):
        parse_method(text)


MINE = """
from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass
from baselines import LowRankDelta, layer_method

@dataclass
class Settings:
    factor: float = {factor}

@layer_method("halves")
def halves(deltas: Sequence[LowRankDelta], *, weight: float = 0.5) -> LowRankDelta:
    "Add the updates, each scaled."
    return Settings().factor * weight * (deltas[0] + deltas[1])

@layer_method("first")
def first(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
    return deltas[0]
"""


def test_a_file_beside_that_is_named_like_the_method_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zplora.py").write_text("")
    with pytest.raises(
        PluginError, match=r"the one in zplora\.py is written \./zplora\.py:zplora$"
    ):
        parse_method("zplora:weight=1")


def test_loads_a_method_from_a_file(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(MINE.format(factor=1.0))
    method, options = parse_method(f"{path}:halves:weight=0.25")
    assert options == {"weight": 0.25}
    assert method.source == hashlib.sha256(path.read_bytes()).hexdigest()
    one, two = adapter(0), adapter(1)
    expected = 0.25 * (one.deltas["a"].dense() + two.deltas["a"].dense())
    torch.testing.assert_close(
        method([one, two], **options).deltas["a"].dense(), expected, rtol=1e-5, atol=1e-6
    )
    assert parse_method(f"{path}:halves")[0] is method
    assert [item.name for item in tmp_path.iterdir()] == ["mine.py"]
    assert parse_method(f"{path}:first")[0] is METHODS.get("first")
    with pytest.raises(PluginError, match="has no method 'halfs'; did you mean 'halves'"):
        parse_method(f"{path}:halfs")
    with pytest.raises(PluginError, match="has no method 'direct_sum'"):
        parse_method(f"{path}:direct_sum")
    bare = tmp_path / "bare.py"
    bare.write_text("def softer(deltas):\n    return deltas[0]\n")
    with pytest.raises(PluginError, match=r"register one, as by @layer_method\('softer'\)"):
        parse_method(f"{bare}:softer")
    bare.unlink()
    with pytest.raises(PluginError, match=r"say which of its methods: mine\.py:halves"):
        parse_method(str(path))

    path.write_text(MINE.format(factor=2.0))
    changed, _ = parse_method(f"{path}:halves")
    assert changed.source != method.source
    torch.testing.assert_close(
        changed([one, two], **options).deltas["a"].dense(), 2 * expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (MINE.replace("first", "average"), PluginError, "mine.py: there is a method 'average' al"),
        ("def f(:", PluginError, "mine.py cannot be imported: invalid syntax"),
        ("import no_such_library", PluginError, "cannot be imported: No module named 'no_such"),
        (MINE + "\n1 / 0", PluginError, r"mine.py:\d+ fails: ZeroDivisionError: division by zero"),
        (
            MINE.replace("weight: float = 0.5", "weight=0.5"),
            PluginError,
            "mine.py:11: method 'halves': option 'weight' needs an annotation",
        ),
    ],
)
def test_a_broken_file_leaves_nothing_behind(
    source: str, error: type[Exception], message: str, tmp_path: Path
):
    before = METHODS.names()
    average = METHODS.get("average")
    path = tmp_path / "mine.py"
    path.write_text(source.format(factor=1.0) if source.startswith("\n") else source)
    with pytest.raises(error, match=message):
        parse_method(f"{path}:halves")
    assert METHODS.names() == before
    assert METHODS.get("average") is average
    path.write_text(MINE.format(factor=1.0))
    assert parse_method(f"{path}:halves")[0].name == "halves"


# --- from installed packages


def entry_points(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    found = [importlib.metadata.EntryPoint("x", module, "tried.group") for module in modules]

    def fake(*, group: str) -> list[importlib.metadata.EntryPoint]:
        return found if group == "tried.group" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", fake)


def test_loads_plugins_when_a_name_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tried_plugin.py").write_text(
        "from baselines import layer_method\n"
        "@layer_method('from_plugin')\n"
        "def f(deltas):\n    return deltas[0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry_points(monkeypatch, "tried_plugin", "tried_plugin")
    registry: Registry[int] = Registry("method", entry_points="tried.group")
    registry.register("here", 1)
    assert registry.get("here") == 1
    assert "tried_plugin" not in sys.modules
    with pytest.raises(PluginError, match="there is no method 'there'"):
        registry.get("there")
    assert "tried_plugin" in sys.modules
    assert METHODS.get("from_plugin").kind == "layer"
    assert registry.names() == ("here",)  # loaded once: the module would clash with itself


def test_a_broken_plugin_is_named_and_leaves_built_ins_usable(monkeypatch: pytest.MonkeyPatch):
    entry_points(monkeypatch, "no_such_plugin")
    registry: Registry[int] = Registry("method", entry_points="tried.group")
    registry.register("here", 1)
    assert registry.get("here") == 1
    for _ in range(2):
        with pytest.raises(PluginError, match=r"no_such_plugin \(entry-point group tried.group\)"):
            registry.get("there")


def test_lorarar_comes_through_its_entry_point():
    """In a fresh process, as if the project were installed; nothing there needs diffusers."""
    code = """
        import importlib.metadata, json, sys, tomllib
        from pathlib import Path
        points = tomllib.loads(Path("pyproject.toml").read_text())["project"]["entry-points"]
        made = [importlib.metadata.EntryPoint(name, value, group)
                for group, entries in points.items() for name, value in entries.items()]
        importlib.metadata.entry_points = lambda *, group: [e for e in made if e.group == group]
        from baselines import METHODS
        assert "lorarar.method" not in sys.modules
        names = METHODS.names()
        heavy = sorted({"diffusers", "transformers", "peft"} & set(sys.modules))
        print(json.dumps([names, METHODS.get("lorarar").kind, heavy]))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    names, kind, heavy = json.loads(result.stdout)
    assert {"direct_sum", "average", "ziplora", "base", "subject_only", "style_only"} < set(names)
    assert names[-1] == "lorarar"
    assert kind == "adapter"
    assert heavy == []


def test_a_decorator_without_a_name_says_how_to_write_it() -> None:
    with pytest.raises(PluginError, match=r"write @layer_method\('plain'\)"):

        @layer_method
        def plain(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
            return deltas[0]
