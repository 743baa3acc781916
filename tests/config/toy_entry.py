"""An entry function, in a module that is not on the allow list itself."""

import dataclasses
from typing import Any, Literal


def evaluate(
    *, temperature: float, seed: int, num_draft_tokens: int = 4, rule: Any = None, drafter: Any = None,
    tasks: tuple[str, ...] = (), dtype: Literal['float32', 'bfloat16'] = 'float32', resume: bool = False,
    output_dir: str | None = None, rates: list[float] = [], options: dict[str, int] | None = None,  # pylint: disable=dangerous-default-value
    untyped=1.5):
  """Returns what it was called with."""
  return dict(
      temperature=temperature, seed=seed, num_draft_tokens=num_draft_tokens, rule=rule, drafter=drafter, tasks=tasks,
      dtype=dtype, resume=resume, output_dir=output_dir, rates=rates, options=options, untyped=untyped)


def delete_everything(path: str):
  """Beside the entry, and not for configurations."""
  raise AssertionError(path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """An entry that is a class."""

  temperature: float
  seed: int
  names: tuple[str, ...] = ()

  def __post_init__(self):
    if self.temperature < 0:
      raise ValueError('temperature is negative')
