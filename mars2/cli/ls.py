"""`mars2 ls`: what there is to choose from."""

import typer

app = typer.Typer(no_args_is_help=True, help="List methods, suites, metrics and judges.")


@app.command()
def methods() -> None:
    """List the merge methods with their options and defaults."""
    from baselines import METHODS

    for name in METHODS.names():
        method = METHODS.get(name)
        options = ", ".join(f"{key}={item.default}" for key, item in method.parameters.items())
        print(f"{name:<17} {method.kind:<8} {options}")


@app.command()
def suites() -> None:
    """List the suites with their revision and number of pairs."""
    from benchmark_data.load import load_suite, suite_names

    for name in suite_names():
        suite = load_suite(name)
        pairs = ", ".join(f"{split} {len(cases)}" for split, cases in suite.cases.items())
        print(f"{name:<14} {suite.revision}  pairs: {pairs}  {suite.title}")


@app.command()
def metrics() -> None:
    """List the metrics with the scores that each gives."""
    from mars2.metrics import METRICS

    for name in METRICS.names():
        print(f"{name:<14} {_first_line(METRICS.get(name))}")


@app.command()
def judges() -> None:
    """List the judges, and those of the suites."""
    from benchmark_data.load import load_suite, suite_names
    from mars2.judges import JUDGES

    for name in JUDGES.names():
        print(f"{name:<20} {_first_line(JUDGES.get(name))}")
    chosen: dict[str, list[str]] = {}
    for name in suite_names():
        chosen.setdefault(load_suite(name).models.judge, []).append(name)
    print("\nA judge is named with its model, --judge NAME:MODEL. Left out, it is the suite's:")
    for judge, names in chosen.items():
        print(f"{judge}  of {', '.join(names)}")


def _first_line(value: object) -> str:
    return (value.__doc__ or "").strip().partition("\n")[0]
