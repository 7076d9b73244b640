"""Arrays that keep their origin: z-points with their model, decoded images with model, z-points and seed."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np


class _ArrayWithOrigin(np.ndarray):
    """An array whose copies and pickles keep all its attributes."""

    def copy(self, order: Any = "C") -> Any:
        copied = super().copy(order)
        vars(copied).update(deepcopy(vars(self)))
        return copied

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, memo: Any, /) -> Any:
        return self.copy()

    def __reduce__(self) -> Any:
        function, arguments, state = super().__reduce__()  # pyright: ignore[reportAssignmentType]
        return function, arguments, (*state, vars(self))

    def __setstate__(self, state: Any, /) -> None:
        super().__setstate__(state[:5])  # pyright: ignore[reportAttributeAccessIssue]
        vars(self).update(*state[5:])  # none in pickles of earlier versions


class ZPoints(_ArrayWithOrigin):
    """z-points float32 (n, z_dim); `model` is the `name/version` whose latent space they lie in, "" if unknown.

    A slice, a copy, a pickle and a result of arithmetic, `np.concatenate` or `np.stack` keep it. The last three raise
    ValueError for z-points of two versions.
    """

    model: str

    def __new__(cls, array: np.ndarray, model: str = "") -> "ZPoints":
        points = np.asarray(array).view(cls)
        points.model = model
        return points

    def __array_finalize__(self, source: Any) -> None:
        self.model = getattr(source, "model", "")

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        result = super().__array_wrap__(array, context, return_scalar)
        if context and isinstance(result, ZPoints):
            result.model = _common_model(context[1])  # of a ufunc's arguments
        return result

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(function, types, args, kwargs)
        # np.stack and np.vstack call it too.
        return ZPoints(result, _common_model(args[0])) if function is np.concatenate else result


def _common_model(arrays: Sequence[Any]) -> str:
    """Return the version of all z-points among `arrays`, "" if none is known. Raises ValueError for two."""
    models = sorted({model for array in arrays if (model := getattr(array, "model", ""))})
    if len(models) > 1:
        raise ValueError(f"z-points of {' and '.join(models)} do not mix: encode all by one version")
    return "".join(models)


class Images(_ArrayWithOrigin):
    """Decoded images uint8 (n, size, size, channels), with what they were made from.

    `model`: `name/version`, "" if unknown. `z`: the z-points (n, z_dim). `seed`: of the random numbers, None without
    any. `corrupted`: the input of the encoder, shaped as the images, None if they were not reconstructed. Copies and
    pickles keep all, slices and results of arithmetic `model` and `seed` alone.
    """

    model: str
    z: ZPoints | None
    seed: int | None
    corrupted: np.ndarray | None

    def __new__(
        cls, array: np.ndarray, z: np.ndarray, model: str = "", seed: int | None = None,
        corrupted: np.ndarray | None = None,
    ) -> "Images":  # fmt: skip
        images = np.asarray(array).view(cls)
        images.z, images.model, images.seed, images.corrupted = ZPoints(z, model), model, seed, corrupted
        return images

    def __array_finalize__(self, source: Any) -> None:
        self.model, self.seed = getattr(source, "model", ""), getattr(source, "seed", None)
        self.z = self.corrupted = None
