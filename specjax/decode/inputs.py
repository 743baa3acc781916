"""What `generate` and `stream` are given, checked on the host: every slip is a named error before anything compiles."""

from collections.abc import Callable, Collection, Mapping, Sequence
import hashlib
import inspect
import numbers
from typing import Any

import jax
import numpy as np

from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.ops import warping

_FEW_SLOTS = 8
_LAW_DTYPES = {}  # Tracing costs a tenth of a second, a pair that was seen does not pay it again.


def is_list(value: Any) -> bool:
  """Whether `value` is an ordered collection of things that are not characters."""
  if isinstance(value, np.ndarray):
    return value.ndim > 0
  return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def check_prompts(prompts: Any) -> None:
  """`PromptError` unless `prompts` is a list of texts and lists of integers."""
  if isinstance(prompts, (str, bytes)):
    raise errors.PromptError(
        what='prompts', got=prompts, expected='a list of prompts', fix='put the text in brackets: [text]')
  if not is_list(prompts):
    raise errors.PromptError(what='prompts', got=prompts, expected='a list of texts or of lists of token ids')
  if not len(prompts):
    raise errors.PromptError(what='prompts', got=0, expected='at least one prompt')
  for i, prompt in enumerate(prompts):
    where = f'prompts[{i}]'
    if isinstance(prompt, numbers.Integral):
      raise errors.PromptError(
          what='prompt', where=where, got=prompt, expected='a text or a list of token ids',
          fix='brackets are missing: one prompt of token ids is [[1, 2, 3]]')
    if isinstance(prompt, str):
      continue
    if not is_list(prompt):
      raise errors.PromptError(what='prompt', where=where, got=prompt, expected='a text or a list of token ids')
    for token in prompt:
      if not isinstance(token, numbers.Real):
        raise errors.PromptError(what='token id', where=where, got=token, expected='an integer: a prompt is a flat list')


def example_names(example_ids: Any, count: int) -> list[Any]:
  """One name per prompt; they address the random numbers, so no two are equal."""
  if example_ids is None:
    return list(range(count))
  if not is_list(example_ids):
    raise errors.ParamError(what='example_ids', got=example_ids, expected='a list with one id per prompt')
  if len(example_ids) != count:
    raise errors.ParamError(what='example_ids', got=f'{len(example_ids)} ids', expected=f'{count}, one per prompt')
  seen = set()
  for i, name in enumerate(example_ids):
    example_address(name)
    if (isinstance(name, str), name) in seen:
      raise errors.ParamError(
          what='example_ids', where=f'example_ids[{i}]', got=name, expected='an id of its own for each prompt',
          fix='equal ids share their random numbers; num_samples draws several answers to one prompt')
    seen.add((isinstance(name, str), name))
  return list(example_ids)


def example_address(name: int | str) -> int:
  """uint32 address of an example: integers are themselves, strings are hashed."""
  if isinstance(name, str):
    return int.from_bytes(hashlib.sha256(name.encode('utf-8', 'surrogatepass')).digest()[:4], 'big')
  return checks.integer('example_id', name, low=0, high=2**32 - 1, over=errors.ParamError)


def per_prompt(name: str, value: Any, count: int, check: Callable[[Any], Any]) -> list[Any]:
  """`check` of a value that is given once, or once per prompt."""
  values = list(value) if is_list(value) else [value] * count
  if len(values) != count:
    raise errors.ParamError(what=name, got=f'{len(values)} values', expected=f'one, or {count}')
  return [check(value) for value in values]


def sampling(value: Any) -> checks.SamplingParams:
  """`value`, or `ParamError` when it is not `SamplingParams`."""
  if isinstance(value, Mapping):
    raise errors.ParamError(
        what='sampling', got=dict(value), expected='SamplingParams', fix='write specjax.SamplingParams(**values)')
  if not isinstance(value, checks.SamplingParams):
    raise errors.ParamError(
        what='sampling', got=value, expected='SamplingParams', fix='write specjax.SamplingParams(temperature=0.0)')
  return value


def eos_ids(pair: Any, value: Any) -> tuple[int, ...]:
  """The token ids that end a row; None stands for the tokenizer's."""
  if value is None:
    return () if pair.tokenizer is None else (int(pair.tokenizer.eos_id),)
  if isinstance(value, numbers.Integral):
    raise errors.ParamError(what='eos_ids', got=value, expected='a list of token ids', fix=f'write ({value},)')
  if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection):
    raise errors.ParamError(what='eos_ids', got=value, expected='a list of token ids')
  checks.token_ids(list(value), pair.target.vocab_size, what='eos id')
  return tuple(int(token) for token in value)


def decoder(method: Any, pair: Any) -> Any:
  """The decoder that `method` is or makes of a pair."""
  example = 'a method such as specjax.speculative(num_draft_tokens=4)'
  if isinstance(method, str):
    raise errors.ParamError(what='method', got=method, expected=example)
  is_function = callable(method) and not isinstance(method, type)
  if isinstance(method, type) or (is_function and not _takes_a_pair(method)):
    name = getattr(method, '__name__', repr(method))
    raise errors.ParamError(
        what='method', got=name, expected=example, fix=f'call it with its parameters: {name}(...)')
  made = method(pair) if is_function else method
  if getattr(made, 'slack', None) is None:
    raise errors.ParamError(what='method', got=made, expected=example)
  return made


def _takes_a_pair(function):
  """Whether a function can be called with a pair alone: the makers of methods cannot."""
  try:
    inspect.signature(function).bind(None)
  except TypeError:
    return False
  except ValueError:  # No signature to be had: the call will say.
    return True
  return True


def encode(pair: Any, prompt: Any, name: Any) -> list[int]:
  """Token ids of one prompt that `check_prompts` has seen."""
  where = f'example {name}'
  if isinstance(prompt, str):
    if pair.tokenizer is None:
      raise errors.PromptError(
          what='text prompt', where=where, got='str', expected='token ids', fix='this pair has no tokenizer')
    prompt = pair.encode_prompt(prompt)
  if not len(prompt):
    raise errors.PromptError(what='prompt', where=where, got='no tokens', expected='at least one token')
  if len(prompt) > checks.MAX_PROMPT_TOKENS:
    raise errors.LimitError(
        what='prompt tokens', where=where, got=len(prompt), expected=f'at most {checks.MAX_PROMPT_TOKENS}')
  checks.token_ids(prompt, pair.target.vocab_size, where=where)
  return [int(token) for token in prompt]


def law_dtype(pair: Any) -> Any:
  """The dtype in which the target's laws are computed, from the shapes of its parameters alone."""
  leaves, treedef = jax.tree.flatten(pair.params['target'])
  key = (pair.target, pair.family, treedef, tuple((np.shape(x), str(x.dtype)) for x in leaves))
  if key not in _LAW_DTYPES:
    token, one = jax.ShapeDtypeStruct((1, 1), np.int32), jax.ShapeDtypeStruct((1,), np.int32)
    encoder = (token, one) if pair.family == 'encoder-decoder' else ()

    def logits(params, prompt):
      _, cache = pair.target.prefill(params, prompt, _FEW_SLOTS)
      return pair.target.extend(params, cache, prompt.tokens, count=prompt.length)[0].logits

    shape = jax.eval_shape(logits, pair.params['target'], types.Prompt(token, one, *encoder))
    _LAW_DTYPES[key] = warping.probability_dtype(shape.dtype)
  return _LAW_DTYPES[key]


def check_length(pair: Any, *, lengths: Sequence[int], limits: Sequence[int], names: Sequence[Any]) -> None:
  """`LimitError` when a prompt and its new tokens are more than the target or the drafter was made for.

  Args:
    pair: whose `max_length`s count; of an encoder-decoder both sides have it.
    lengths: tokens of each prompt.
    limits: new tokens of each prompt.
    names: of the examples.
  """
  for role in ('target', 'drafter'):
    largest = getattr(pair, role).max_length
    if largest is None:
      continue
    for name, length, limit in zip(names, lengths, limits):
      total = length + limit if pair.family == 'decoder-only' else max(length, 1 + limit)
      if total > largest:
        raise errors.LimitError(
            what=f'prompt and new tokens of the {role}', where=f'example {name}', got=f'{length} + {limit} tokens',
            expected=f'at most its max_length {largest}', fix='shorten the prompt or lower max_new_tokens')
