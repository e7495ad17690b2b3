"""The parameters of a row: a package, its algorithm where it has several, and the grid it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from quant.config import NULL, check_choice, either, is_whole, known_keys, one_of, properties_of, whole
from quant.errors import InputError
from quant.model.recipe import Recipe
from quant.tensor.scheme import Scheme


@dataclass(frozen=True)
class Package:
    """What a package offers. name: of its distribution. module: what is imported. symmetric, asymmetric: which grids it has.
    algorithms: to choose from; the first is the default. is_calibrated: whether it looks at a text. real_zeros: zeros are real
    numbers; otherwise whole ones of `bits` bits."""

    name: str
    module: str
    bits: tuple[int, ...]
    symmetric: bool
    asymmetric: bool
    algorithms: tuple[str, ...]
    is_calibrated: bool
    real_zeros: bool = False


PACKAGES = {
    "hqq": Package("hqq", "hqq", (2, 3, 4, 8), False, True, ("hqq",), False, real_zeros=True),
    "torchao": Package("torchao", "torchao", (2, 3, 4, 5, 6, 7, 8), True, True, ("nearest",), False),
    "quanto": Package("optimum-quanto", "optimum.quanto", (2, 4, 8), False, True, ("nearest",), False, real_zeros=True),
    "llmcompressor": Package("llmcompressor", "llmcompressor", (2, 3, 4, 8), True, True, ("gptq", "awq"), True),
    "auto_round": Package("auto-round", "auto_round", (2, 3, 4, 8), True, True, ("signround",), True),
    "gptqmodel": Package("gptqmodel", "gptqmodel", (2, 3, 4, 8), True, True, ("gptq",), True),
}


@dataclass(frozen=True)
class Spec:
    """package: of PACKAGES. algorithm: null = the package's first. bits, group_size, symmetric: as of a scheme; the group size is
    a number or row. iterations: of auto-round, a block. seed: of what the package draws."""

    package: str
    algorithm: str | None = None
    bits: int = 4
    group_size: int | str = 64
    symmetric: bool = False
    iterations: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("package", self.package, tuple(PACKAGES))
        package = self.about
        if self.algorithm is None:
            object.__setattr__(self, "algorithm", package.algorithms[0])
        check_choice(f"algorithm of {self.package}", self.algorithm, package.algorithms)
        if self.bits not in package.bits or isinstance(self.bits, bool):
            raise InputError(f"bits is {self.bits!r}; {self.package} has {', '.join(map(str, package.bits))}")
        if not is_whole(self.group_size) and self.group_size != "row":
            raise InputError(f"group_size is {self.group_size!r}; expected row or a number of weights such as 64")
        if not isinstance(self.symmetric, bool):
            raise InputError(f"symmetric is {self.symmetric!r}; expected true or false")
        if not (package.symmetric if self.symmetric else package.asymmetric):
            kind = "asymmetric" if self.symmetric else "symmetric"
            raise InputError(f"symmetric is {self.symmetric}; {self.package} has {kind} steps only")
        for key, least in (("iterations", 1), ("seed", 0)):
            if not is_whole(getattr(self, key), least):
                raise InputError(f"{key} is {getattr(self, key)!r}; expected a whole number from {least}")

    @classmethod
    def from_dict(cls, values: dict) -> Spec:
        if "package" not in values:
            raise InputError(f"a peers row needs a package ({', '.join(PACKAGES)}); found {dict(values)}")
        return cls(**known_keys(cls, values, "peers"))

    @property
    def about(self) -> Package:
        """What its package offers."""
        return PACKAGES[self.package]

    @property
    def scheme(self) -> Scheme:
        """How this project stores what is asked for: all codes and, as these packages do, scales and real zeros in 16 bits.
        quanto's 8 bits are symmetric and have a scale a row."""
        is_symmetric = self.symmetric or (self.package == "quanto" and self.bits == 8)
        kind = {"levels": "full"} if is_symmetric else {"zeros": "real" if self.about.real_zeros else "whole"}
        return Scheme(self.bits, self.group_size, symmetric=is_symmetric, scale_dtype="float16", **kind)

    @property
    def recipe(self) -> Recipe:
        """The weights asked for, all matrices of the blocks, with the scheme."""
        return Recipe(self.scheme)


def properties() -> dict[str, dict]:
    """JSON schema of each parameter of a row."""
    algorithms = sorted({name for package in PACKAGES.values() for name in package.algorithms})
    return properties_of(Spec, package=one_of(list(PACKAGES)), algorithm=either(one_of(algorithms), NULL), bits=whole(2, 8),
                         group_size=either(one_of(["row"]), whole()), iterations=whole(1), seed=whole(0))
