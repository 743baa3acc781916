"""What training draft heads adds to training a model: a target, its answers, its hidden states."""

import dataclasses
import hashlib
import pathlib
from typing import Any, Literal

from specjax.checkpoints import heads_file
from specjax.checkpoints import native
from specjax.core import checks
from specjax.core import errors
from specjax.core import protocols
from specjax.pairs import builtin
from specjax.pairs import target_answers
from specjax.training import autoregressive_head
from specjax.training import batches
from specjax.training import draft_heads
from specjax.training import hidden_states
from specjax.training import language_model
from specjax.training import stopping

SPECS = builtin.HEADS | builtin.AUTOREGRESSIVE_HEADS
ANSWER_BATCH_SIZE = 32


@dataclasses.dataclass(frozen=True)
class Options:
  """How heads are trained.

  Attributes:
    answers: 'text' takes the reference answers of the questions, 'target_greedy' and 'target_sampled' those that the
      target itself gives (self-distillation).
    hidden_states: 'computed' at every step, or written to disk first, as 'float32' or 'bfloat16'.
    target_weight: None keeps the target as it is; a number trains it too, with this weight of its own loss.
  """

  answers: Literal['text', 'target_greedy', 'target_sampled'] = 'text'
  hidden_states: Literal['computed', 'float32', 'bfloat16'] = 'computed'
  target_weight: float | None = None

  def __post_init__(self):
    checks.choice('answers', self.answers, ('text', 'target_greedy', 'target_sampled'))
    checks.choice('hidden_states', self.hidden_states, ('computed', *hidden_states.DTYPES))
    if self.target_weight is not None:
      checks.real('target_weight', self.target_weight, low=0)
      if self.hidden_states != 'computed':
        raise errors.ConfigError(
            what='hidden_states with target_weight', got=self.hidden_states, expected="'computed'",
            fix='a target that is trained changes its hidden states with every step')

  def check(self, name: str) -> None:
    """`ConfigError` for options that the training of the model `name` has no use for."""
    if name not in SPECS and self != Options():
      raise errors.ConfigError(
          what='answers, hidden_states or target_weight', where=name, got=dataclasses.asdict(self),
          expected='the defaults: these are options of draft heads', fix=f'train one of {", ".join(SPECS)}')
    if name in builtin.AUTOREGRESSIVE_HEADS and self.target_weight is not None:
      raise errors.ConfigError(
          what='target_weight', where=name, got=self.target_weight, expected='None',
          fix='an autoregressive head continues the states of a target that stays: train blockwise heads jointly')


@dataclasses.dataclass(frozen=True)
class HeadsRun:
  """Heads to train on a target.

  Attributes:
    spec: the heads and their loss weights; its `pair` is read for built-in targets alone.
    options: how they are trained.
    target, target_params: the target.
    target_path: its file.
    target_sha256: of that file.
  """

  spec: builtin.HeadsSpec | builtin.AutoregressiveHeadSpec
  options: Options
  target: protocols.LanguageModel
  target_params: Any
  target_path: pathlib.Path
  target_sha256: str

  @classmethod
  def of(cls, name: str, options: Options) -> 'HeadsRun':
    """The run of the heads called `name` in `SPECS`, on the shipped target of their pair."""
    with builtin.target_file(SPECS[name].pair) as path:
      target, params = builtin.load_model(path)
      return cls(SPECS[name], options, target, params, path, native.sha256_file(path))

  @property
  def role(self) -> str:
    """What the parameters are called among a pair's, and their file."""
    return 'autoregressive_head' if isinstance(self.spec, builtin.AutoregressiveHeadSpec) else 'heads'

  def description(self, target: pathlib.Path | None = None) -> dict[str, Any]:
    """The heads on the target in a file (the shipped one), and how they are trained."""
    described = heads_file.describe(self.spec.config, target=target or self.target_path)
    return described | self._weights | {'training': dataclasses.asdict(self.options)}

  def objective(self, *, z_loss: float) -> language_model.Objective:
    """What is minimised."""
    heads, target, params = heads_file.make(self.spec.config), self.target, self.target_params
    if isinstance(self.spec, builtin.AutoregressiveHeadSpec):
      return autoregressive_head.objective(target, params, heads, **self._weights)
    if self.options.target_weight is None:
      return draft_heads.objective(target, params, heads, z_loss=z_loss, **self._weights)
    return draft_heads.joint_objective(
        target, params, heads, z_loss=z_loss, target_weight=self.options.target_weight, **self._weights)

  def answers(
      self, *, directory: pathlib.Path, seed: int, max_new_tokens: int, stop: stopping.StopRequest, show_progress: bool
  ) -> target_answers.TargetAnswers | None:
    """The target that answers the questions itself; None where the reference answers are taken."""
    if self.options.answers == 'text':
      return None
    loaded = (self.target, self.target_params)
    return target_answers.TargetAnswers(
        pair=builtin.make_pair(self.spec.pair, target=loaded, drafter=loaded), target_sha256=self.target_sha256,
        temperature=0.0 if self.options.answers == 'target_greedy' else 1.0, seed=seed, max_new_tokens=max_new_tokens,
        batch_size=ANSWER_BATCH_SIZE, directory=directory, stop=stop, show_progress=show_progress)

  def with_hidden_states(
      self, data: batches.PackedData, *, directory: pathlib.Path, batch_size: int, stop: stopping.StopRequest,
      show_progress: bool,
  ) -> batches.PackedData | hidden_states.HiddenStates:
    """The data, with hidden states from disk where the options ask for them; they are written first.

    Raises:
      Stopped: `stop` asked before all were written.
    """
    dtype = self.options.hidden_states
    if dtype == 'computed':
      return data
    content = f'{self.target_sha256} {data.fingerprint()} {dtype}'
    directory = directory / f'hidden-{hashlib.sha256(content.encode()).hexdigest()[:16]}'
    complete = hidden_states.write(
        directory, target=self.target, params=self.target_params, target_sha256=self.target_sha256, data=data, dtype=dtype,
        batch_size=min(batch_size, len(data)), stop=stop, show_progress=show_progress)
    if not complete:
      raise target_answers.Stopped
    return hidden_states.HiddenStates(directory, target_sha256=self.target_sha256)

  def export(self, params: Any, *, export_dir: pathlib.Path, recipe: dict[str, Any]) -> list[pathlib.Path]:
    """Writes the heads to `<pair>/<role>.safetensors`, and the target too where it was trained with them; the files.

    Raises:
      ConfigError: it would replace the target that they were trained from.
    """
    path = export_dir / self.spec.pair / f'{self.role}.safetensors'
    if self.options.target_weight is None:
      native.save_safetensors(path, params, self.description() | {'recipe': recipe})
      return [path]
    target_path = path.with_name('target.safetensors')
    self.check_export(export_dir)
    described = builtin.describe(dataclasses.replace(builtin.MODELS[f'{self.spec.pair}_target'], config=self.target.config))
    started = {'trained_from_sha256': self.target_sha256}
    native.save_safetensors(target_path, params['target'], described | {'recipe': recipe} | started)
    native.save_safetensors(path, params['heads'], self.description(target_path) | {'recipe': recipe} | started)
    return [target_path, path]

  def check_export(self, export_dir: pathlib.Path) -> None:
    """`ConfigError` where exporting to `export_dir` would replace the target that training started from."""
    path = export_dir / self.spec.pair / 'target.safetensors'
    if self.options.target_weight is not None and path.exists() and path.samefile(self.target_path):
      raise errors.ConfigError(
          what='export_dir', got=str(export_dir), expected='another folder than that of the target',
          fix='the target is trained too, and a new one would replace it: the drafter and other heads belong to the old one')

  @property
  def _weights(self):
    """Of the parts of the loss."""
    if isinstance(self.spec, builtin.AutoregressiveHeadSpec):
      return dict(feature_weight=self.spec.feature_weight, token_weight=self.spec.token_weight)
    return dict(head_weights=[self.spec.decay**index for index in range(1, self.spec.config.num_heads + 1)])
