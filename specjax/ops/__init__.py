"""Pure array functions, the notebook surface: `from specjax.ops import warping, categorical, verification`."""
