"""Runs `mars2` commands on a GPU that is not there, to find tensors that are on the wrong device.

``python -P tests/pretended_gpu.py run --device cuda ... -- score --device cuda ...``

Tensors on "cuda" are held on the CPU, where every operation is done, with the same numbers. But
they say they are on the GPU, and what CUDA refuses is refused: tensors of both devices in one
operation, a generator of the other device, `numpy()`. What cannot be pretended is left out: memory,
speed, CUDA's own kernels (attention is the plain one) and backward passes, which give zeros.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
BETWEEN = {"aten::copy_", "aten::_to_copy", "aten::to"}  # operations that go between devices
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
PLAIN_ATTENTION = 0


class OnGpu(Tensor):
    """A tensor that says it is on the GPU; its numbers are in ``held``."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None) -> Any:
        return _do(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class Operations(TorchDispatchMode):
    """Sees every operation, those that make tensors of nothing among them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        return _do(func, args, kwargs or {})


class Lists(TorchFunctionMode):
    """Does with Python's lists what C++ would do on a real GPU, unseen by `Operations`."""

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            made = func(*tree_map(_on_cpu, args), **kwargs)
            return made if device is None else made.to(device)
        if func is Tensor.tolist and isinstance(args[0], OnGpu):
            return args[0].held.tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(one) if isinstance(one, list) else one for one in index)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


def _do(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do an operation on the CPU if it is one that the devices of its arguments allow."""
    name = func._schema.name
    if name == "aten::_fused_sdp_choice":
        return PLAIN_ATTENTION
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    gpu = [isinstance(tensor, OnGpu) for tensor in tensors]
    places = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    on_gpu = places[0].type == "cuda" if places else any(gpu)
    if name == "aten::copy_":
        on_gpu = gpu[0]
    elif any(gpu) and not all(gpu) and name not in BETWEEN:
        strangers = [one for one, here in zip(tensors, gpu, strict=True) if not here and one.dim()]
        if strangers and not (name in INDEXING and gpu[0]):
            raise RuntimeError(f"{name}: tensors are on cuda:0 and on cpu")
    generator = kwargs.get("generator")
    if generator is not None and (generator.device.type == "cuda") != on_gpu:
        raise RuntimeError(f"{name}: the generator is on another device than the tensor")
    result = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    if func._schema.is_mutable and isinstance(result, Tensor):
        changed = args[0] if "out" not in kwargs else kwargs["out"]
        if changed.shape != result.shape:
            raise NotImplementedError(f"{name} changes the shape of a tensor on a pretended GPU")
        return changed
    wraps = on_gpu and name != "aten::_local_scalar_dense"
    return tree_map(_on_gpu, result) if wraps else result


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    return value.held if isinstance(value, OnGpu) else value


def _on_gpu(value: Any) -> Any:
    return OnGpu(value) if isinstance(value, Tensor) else value


def _no_gradients(loss: Tensor) -> None:
    """Give each parameter that a loss depends on a gradient of zeros."""
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
            if hasattr(node, "variable"):
                node.variable.grad = torch.zeros_like(node.variable)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """While open, "cuda" is a device."""
    torch._C._ensureCUDADeviceGuardSet()
    gib = 2**30
    stand_ins: dict[str, Any] = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.synchronize": lambda *_: None,
        "torch.cuda.empty_cache": lambda: None,
        "torch.cuda.reset_peak_memory_stats": lambda *_: None,
        "torch.cuda.max_memory_allocated": lambda *_: gib,
        "torch.cuda.mem_get_info": lambda *_: (20 * gib, 24 * gib),
        "torch.cuda.get_device_name": lambda *_: "a pretended GPU",
        "torch.Tensor.backward": _no_gradients,
        "torch.inference_mode": torch.no_grad,  # its tensors cannot be held by others
    }
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch(name, stand_in))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.enter_context(Lists())
        stack.enter_context(Operations())
        yield


def main() -> None:
    """Run commands, separated by "--", one after the other."""
    from mars2.cli import app

    commands: list[list[str]] = [[]]
    for argument in sys.argv[1:]:
        if argument == "--":
            commands.append([])
        else:
            commands[-1].append(argument)
    with pretended_gpu():
        for command in commands:
            app(command, standalone_mode=False)


if __name__ == "__main__":
    main()
