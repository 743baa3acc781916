"""The errors of specjax: raised on the host, before compilation, and saying what to do."""


class SpecjaxError(Exception):
  """Base of every error that specjax raises on purpose.

  Args:
    message: one sentence for people; built from the attributes when empty.
    what: the thing that is wrong ("temperature", "token id", "leaf decoder/kernel").
    where: file:line, example id or flag.
    got: the value that was met.
    expected: what would have been right.
    fix: what to do about it.
  """

  def __init__(self, message='', *, what=None, where=None, got=None, expected=None, fix=None):
    self.what, self.where, self.got, self.expected, self.fix = what, where, got, expected, fix
    super().__init__(message or self._sentence())

  def _sentence(self):
    parts = [str(self.what or 'invalid input')]
    if self.got is not None:
      parts.append(f'got {self.got!r}')
    if self.expected is not None:
      parts.append(f'expected {self.expected}')
    text = ': '.join([parts[0], ', '.join(parts[1:])]) if len(parts) > 1 else parts[0]
    if self.where is not None:
      text = f'{self.where}: {text}'
    return f'{text}. {self.fix}' if self.fix else text


class ParamError(SpecjaxError, ValueError):
  """A sampling, rule or drafter parameter outside its range."""


class LimitError(SpecjaxError, ValueError):
  """A size over a stated cap, or buffers that cannot fit in memory."""


class PromptError(SpecjaxError, ValueError):
  """A prompt that is empty or does not fit."""


class DataError(SpecjaxError, ValueError):
  """A data file with a bad line; `where` is file:line."""


class VocabError(SpecjaxError, ValueError):
  """Token ids outside the vocabulary, or vocabularies that do not match."""


class LogitsError(SpecjaxError, ArithmeticError):
  """A model produced NaN, +inf or an all-masked row; names model, example and step.

  Attributes:
    partial: the `DecodeResult` of what was decoded until the end of the batch with the broken row, or None.
  """

  partial = None


class TopologyError(SpecjaxError, ValueError):
  """A mesh that does not fit the devices or the batch."""


class CheckpointError(SpecjaxError, ValueError):
  """A checkpoint that is missing, damaged or of another model."""


class ConfigError(SpecjaxError, ValueError):
  """A configuration file, binding or flag that is unknown, shadowed or malformed."""
