"""The changes that a LoRA file holds, module by module: checked by their shapes, and what each adds.

A change is scale * product, where product is ``up @ down`` (LoRA), ``(w1_a @ w1_b) * (w2_a @ w2_b)`` (LoHa), or the
Kronecker product of ``w1`` and ``w2``, of which each may be a product ``a @ b`` (LoKr). The scale is alpha / rank
(``lora_scale``). Formulas: LyCORIS (https://github.com/KohakuBlueleaf/LyCORIS), as ComfyUI's ``comfy.weight_adapter``
computes them; a LoKr of two whole matrices has no rank, and its alpha is ignored, in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UnsupportedCheckpointError
from ..plain_text import plain
from .header import FLOATS, INTEGERS, PROMPT_KEYS, Header, check_dtypes, check_finite, read_tensors
from .layouts import Shape
from .lora_names import COMPUTED, canonical_name, is_text_encoders, parse_name
from .lora_scale import stated_scale
from .shards import some_names

#: Parts that a kind must have all of.
_NEEDED = {
    "LoRA": ("up", "down"),
    "LoHa": ("w1_a", "w1_b", "w2_a", "w2_b"),
    "GLoRA": ("a1", "a2", "b1", "b2"),
    "OFT": ("blocks",),
}


@dataclass(frozen=True)
class LoraModule:
    """One module's change. kinds: LoRA and so on; parts: part -> the tensor's name in the file, and its shape."""

    base: str
    kinds: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict[str, str])
    shapes: dict[str, Shape] = field(default_factory=dict[str, Shape])

    @property
    def kind(self) -> str:
        """The kind in a word: ``LoRA``, or ``DoRA (LoRA)`` for more than one."""
        others = [kind for kind in self.kinds if kind not in COMPUTED]
        known = [kind for kind in self.kinds if kind in COMPUTED]
        return " ".join([*others, *(f"({kind})" if others else kind for kind in known)])

    @property
    def computed(self) -> bool:
        """Whether ``product`` can compute it: one kind, of those that are small and exact."""
        return len(self.kinds) == 1 and self.kinds[0] in COMPUTED

    @property
    def in_host(self) -> bool:
        """Whether ComfyUI applies it to a matrix: all but PEFT's DoRA and Tucker's, which are for convolutions."""
        return not {"magnitude", "mid", "t1", "t2"} & self.names.keys()

    @property
    def rank(self) -> int | None:
        """What its alpha is divided by; None where nothing is (a LoKr of whole matrices, other kinds)."""
        shapes = self.shapes
        factors = ("w1_b",) if "LoHa" in self.kinds else ("down", "w2_b", "w1_b")
        part = next((part for part in factors if part in shapes), None)
        return None if part is None or not shapes[part] else shapes[part][0]

    @property
    def shape(self) -> Shape | None:
        """(rows, columns) of the weight that it changes; None for kinds that are not computed here."""
        flat = {part: _flat(shape) for part, shape in self.shapes.items() if part != "alpha"}
        if "LoRA" in self.kinds:
            return flat["up"][0], flat["down"][1]
        if "LoHa" in self.kinds:
            return flat["w1_a"][0], flat["w1_b"][1]
        if "LoKr" not in self.kinds:
            return None
        first, second = (flat.get(part) or (flat[f"{part}_a"][0], flat[f"{part}_b"][1]) for part in ("w1", "w2"))
        return first[0] * second[0], first[1] * second[1]

    def product(self, read: Callable[[str], Tensor]) -> Tensor:
        """(rows, columns) float32, without the scale. read: a part -> its tensor."""

        def flat(part: str) -> Tensor:
            tensor = read(part).float()
            return tensor.reshape(len(tensor), -1)

        def whole(part: str) -> Tensor:
            return flat(part) if part in self.names else flat(f"{part}_a") @ flat(f"{part}_b")

        if self.kinds == ("LoRA",):
            return flat("up") @ flat("down")
        if self.kinds == ("LoHa",):
            return whole("w1") * whole("w2")
        return torch.kron(whole("w1"), whole("w2"))


@dataclass(frozen=True)
class LoraContents:
    """What a LoRA file holds. left_out: text encoders' tensors; unknown: those that are part of no kind of change."""

    header: Header
    modules: dict[str, LoraModule]
    left_out: list[str]
    unknown: list[str]
    #: Scale of each module that has a rank, and where it is from.
    scales: dict[str, float]
    source: str

    @property
    def kinds(self) -> list[str]:
        """The kinds in the file, in order."""
        return sorted({module.kind for module in self.modules.values()})

    @property
    def ranks(self) -> list[int]:
        """The ranks in the file, ascending."""
        return sorted({module.rank for module in self.modules.values() if module.rank is not None})

    @property
    def unknown_parts(self) -> list[str]:
        """Unknown tensors of modules that have other parts: without them the change is half applied."""
        return [name for name in self.unknown if {name.rsplit(".", n)[0] for n in (1, 2)} & self._written]

    @property
    def _written(self) -> set[str]:
        """The modules' names as the file spells them."""
        names = (name for module in self.modules.values() for name in module.names.values())
        return {end for name in names for end in (name.rsplit(".", 1)[0], name.rsplit(".", 2)[0])}

    def left_out_line(self) -> str | None:
        """One line for the log that names what changes text encoders."""
        if not self.left_out:
            return None
        count = len(self.left_out)
        return f"{count} tensors change text encoders and are left out ({some_names(self.left_out)})"

    def read(self) -> dict[str, dict[str, Tensor]]:
        """{base: {part: tensor}} in the file's dtypes. UnsupportedCheckpointError for NaN or infinite numbers."""
        wanted = {name for module in self.modules.values() for name in module.names.values()}
        tensors = read_tensors(self.header, wanted)
        for name, tensor in tensors.items():
            check_finite(self.header, name, tensor)
        return {
            base: {part: tensors[name] for part, name in module.names.items()} for base, module in self.modules.items()
        }


def target_of(contents: LoraContents) -> str:
    """The model that the changed modules' names belong to, as far as names tell."""
    starts = ("diffusion_model.", "transformer.", "lora_transformer_", "lora_unet_double_blocks", "lora_unet_single_bl")
    count = sum(base.startswith(starts) for base in contents.modules)
    if count == len(contents.modules):
        return "a Flux transformer"
    return f"a Flux transformer, and {len(contents.modules) - count} modules of something else" if count else "unknown"


def lora_contents(header: Header) -> LoraContents:
    """The file's changes, checked as far as names, shapes, dtypes and metadata tell.

    Raises UnsupportedCheckpointError: one module under two names, half a pair, factors that do not fit together, rank
    0, an alpha that is no number, metadata of the scale that is wrong, nothing for a transformer.
    """
    modules: dict[str, LoraModule] = {}
    left_out: list[str] = []
    unknown: list[str] = []
    for name in sorted(header.shapes):
        if name in PROMPT_KEYS:
            continue
        if is_text_encoders(name):
            left_out.append(name)
        elif (found := parse_name(canonical_name(name))) is None:
            unknown.append(name)
        else:
            _add(header, modules.setdefault(found.base, LoraModule(found.base)), found.kind, found.part, name, modules)
    _check_any(header, modules, left_out)
    for module in modules.values():
        _check_module(header, module)
    scales, source = _scales(header, modules)
    return LoraContents(header, modules, left_out, unknown, scales, source)


def _add(header: Header, module: LoraModule, kind: str, part: str, name: str, modules: dict[str, LoraModule]) -> None:
    if part in module.names:
        raise UnsupportedCheckpointError(
            header.path,
            f"changes one module under two names ({some_names([module.names[part], name])}); fetch it again",
        )
    kinds = module.kinds if kind in ("", *module.kinds) else tuple(sorted((*module.kinds, kind)))
    modules[module.base] = LoraModule(
        module.base, kinds, {**module.names, part: name}, {**module.shapes, part: header.shapes[name]}
    )


def _check_any(header: Header, modules: dict[str, LoraModule], left_out: list[str]) -> None:
    if any(module.kinds for module in modules.values()):
        return
    what = (
        "changes text encoders alone, and a one-step model has none"
        if left_out
        else f"holds no LoRA that we know ({some_names(sorted(header.shapes))})"
    )
    raise UnsupportedCheckpointError(header.path, f"{what}; choose another LoRA")


def _check_module(header: Header, module: LoraModule) -> None:
    """Refuse what no formula takes, before anything is read."""
    names = module.names
    alphas = [names["alpha"]] if "alpha" in names else []
    ints = [names["reshape_weight"]] if "reshape_weight" in names else []
    check_dtypes(header, set(names.values()) - {*alphas, *ints}, [*alphas, *ints], (*FLOATS, *INTEGERS))
    if alphas and math.prod(shape := module.shapes["alpha"]) != 1:
        raise UnsupportedCheckpointError(
            header.path,
            f"{plain(alphas[0])}: expected a single number, got the shape {shape}; it is damaged: fetch it again",
        )
    computed = [kind for kind in module.kinds if kind in COMPUTED]
    fault = f"both {' and '.join(computed)}" if len(computed) > 1 else None
    if not set(module.kinds) - {"DoRA"}:
        fault = f"{'the scale of a DoRA' if module.kinds else 'an alpha'} and nothing that it scales"
    if fault:
        raise UnsupportedCheckpointError(header.path, f"{plain(module.base)} has {fault}; fetch it again")
    for kind in module.kinds:
        if missing := [part for part in _needed(module, kind) if part not in names]:
            raise UnsupportedCheckpointError(
                header.path,
                f"{plain(module.base)} is half a {kind} ({' and '.join(missing)} missing); it is damaged: "
                "fetch it again",
            )
    _check_factors(header, module)


def _needed(module: LoraModule, kind: str) -> tuple[str, ...]:
    if kind != "LoKr":
        return _NEEDED.get(kind, ())
    return tuple(part for whole in ("w1", "w2") if whole not in module.names for part in (f"{whole}_a", f"{whole}_b"))


def _check_factors(header: Header, module: LoraModule) -> None:
    """Refuse factors of another rank than their partner's, or of none. Tucker's are not multiplied in pairs."""
    shapes, names = module.shapes, module.names
    for left, right in (("up", "down"), ("w1_a", "w1_b"), ("w2_a", "w2_b")):
        if left not in shapes or right not in shapes or "Tucker" in module.kinds:
            continue
        a, b = shapes[left], shapes[right]
        if len(a) < 2 or len(b) < 2 or math.prod(a[1:]) != b[0]:
            raise UnsupportedCheckpointError(
                header.path,
                f"{plain(names[left])} {a} and {plain(names[right])} {b} do not fit together; fetch it again",
            )
    for part, shape in shapes.items():
        if part != "alpha" and math.prod(shape) == 0:
            raise UnsupportedCheckpointError(
                header.path, f"{plain(names[part])} {shape} has rank 0, so that it changes nothing; take another file"
            )
        if part in ("w1", "w2") and len(shape) < 2:
            raise UnsupportedCheckpointError(
                header.path, f"{plain(names[part])} {shape}: expected a matrix; it is damaged: fetch it again"
            )


def _scales(header: Header, modules: dict[str, LoraModule]) -> tuple[dict[str, float], str]:
    """The scale of each module that has a rank, and in words where they are from."""
    alphas = {module.names["alpha"] for module in modules.values() if "alpha" in module.names}
    tensors = read_tensors(header, alphas) if alphas else {}
    ranked = {base: module for base, module in modules.items() if module.rank is not None}
    without = [base for base, module in ranked.items() if "alpha" not in module.names]
    stated = stated_scale(header) if without else None
    scales: dict[str, float] = {}
    for base, module in ranked.items():
        assert module.rank is not None
        if "alpha" in module.names:
            name = module.names["alpha"]
            check_finite(header, name, tensors[name])
            scales[base] = float(tensors[name].item()) / module.rank
        else:
            scales[base] = 1.0 if stated is None else stated.of(header, base, module.rank)
    sources = ["tensors named .alpha"] if len(without) < len(ranked) else []
    if without:
        sources.append("nothing says so: 1" if stated is None else stated.source)
    return scales, "; else ".join(sources) or "nothing here has a rank"


def _flat(shape: Shape) -> Shape:
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)
