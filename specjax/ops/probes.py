"""Small classifiers of one hidden state: linear probes and MLPs as plain functions of plain arrays.

Parameters of a probe over features of width D (every leaf float):

    mean [D], scale [D]            features are standardised first: (features - mean) / scale
    kernels [[D, F], ..., [F, 1]]  one matrix per layer, relu between them; a linear probe has one
    biases [[F], ..., [1]]
    temperature []                 divides the logit (Platt scaling without its offset)
    knots {x [M], y [M]}           the logit after that, and the calibrated probability there: isotonic regression,
                                   linear in between and constant beyond; M = 0 is the logistic function

The score of a probe is a probability that increases with its logit. All functions are *unbatched*.
"""

import jax
import jax.numpy as jnp

from specjax.core import errors


def logit(params, features):
  """float[], the uncalibrated log-odds of `features` float[D]."""
  check_width(params, features)
  dtype = jnp.result_type(params['mean'])
  hidden = (features.astype(dtype) - params['mean']) / params['scale']
  for index, (kernel, bias) in enumerate(zip(params['kernels'], params['biases'], strict=True)):
    hidden = (jax.nn.relu(hidden) if index else hidden) @ kernel + bias
  return hidden[0]


def probability(params, features):
  """float[] in [0, 1], the calibrated probability of the positive class."""
  calibrated = logit(params, features) / params['temperature']
  knots = params['knots']
  if knots['x'].shape[0] == 0:
    return jax.nn.sigmoid(calibrated)
  return jnp.interp(calibrated, knots['x'], knots['y'])


def check_width(params, features):
  """`ParamError` unless `features` have the width that the probe was made for, before anything compiles."""
  if features is None or features.shape[-1] != params['mean'].shape[0]:
    raise errors.ParamError(
        what='width of the features of a probe', got=None if features is None else features.shape[-1],
        expected=params['mean'].shape[0], fix='the probe was trained on the hidden states of another model')
