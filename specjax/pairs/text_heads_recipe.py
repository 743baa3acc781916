"""Draft heads on a target that `pairs/text_recipe.py` has trained: the entry function of `python -m specjax.train heads`."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import TypeVar

import jax.numpy as jnp
import numpy as np

from specjax.checkpoints import formats
from specjax.checkpoints import native
from specjax.core import checks
from specjax.core import errors
from specjax.models import autoregressive_head
from specjax.models import heads as heads_lib
from specjax.pairs import builtin
from specjax.pairs import heads_recipe
from specjax.pairs import target_answers
from specjax.training import batches
from specjax.training import language_model
from specjax.training import loop
from specjax.training import optimizer
from specjax.training import stopping

ROLES = ('heads', 'autoregressive_head')

_T = TypeVar('_T')


def train(
    *, text_run: str, models: Sequence[str], num_heads: int, hidden_dim: int | Mapping[str, int], head_decay: float,
    attention_heads: int, head_dim: int, feature_weight: float, token_weight: float, hidden_states: str,
    seed: int, steps: int | Mapping[str, int], batch_size: int, learning_rate: float | Mapping[str, float],
    warmup_steps: int, weight_decay: float, z_loss: float, input_weight: float, log_every: int, evaluate_every: int,
    save_every: int, tensorboard: bool, progress: bool, stop: stopping.StopRequest, num_devices: int = 1,
    operative_config: str | None = None,
) -> bool:
  """Trains heads on the target of a text run, which is frozen, on the rows that it learned from; whether they are complete.

  They are exported to `<text_run>/<role>.safetensors`: `--heads` and `--autoregressive_head` of the evaluation. Called again
  it goes on from the newest valid checkpoints, bit for bit. Numbers may be given for both roles or by role.

  Args:
    text_run: the output_dir of a complete `train text`.
    models: 'heads' (blockwise), 'autoregressive_head' or both, trained one after the other.
    num_heads: blockwise heads.
    hidden_dim: of a blockwise head, or of the MLP of the autoregressive one.
    head_decay: loss weight of blockwise head j is `head_decay` ** j.
    attention_heads, head_dim: of the autoregressive head; it has one head of keys.
    feature_weight, token_weight: of its losses.
    hidden_states: see `heads_recipe.Options`.
    seed: of initialisation and of the order of rows.
    steps: length of the run and of its learning-rate schedule.
    batch_size: rows per step.
    learning_rate: the peak.
    warmup_steps: of linear warm-up.
    weight_decay: decoupled, of matrices.
    z_loss: weight of the squared log-normaliser (blockwise).
    input_weight: loss weight of questions.
    log_every, evaluate_every, save_every: steps between training reports, validations, checkpoints.
    tensorboard: write TensorBoard event files.
    progress: show a progress bar.
    stop: asks to save and return.
    num_devices: over which the rows of a batch are split.
    operative_config: kept beside the checkpoints.

  Raises:
    ConfigError: an unknown role, or `text_run` is not a complete run.
    ParamError, LimitError: a number without meaning, before anything is read.
  """
  if not models or len(set(models)) != len(models) or not set(models) <= set(ROLES):
    raise errors.ConfigError(what='models', got=list(models), expected=' or '.join(ROLES))
  options = heads_recipe.Options(hidden_states=hidden_states)
  checks.real('head_decay', head_decay, low=0, low_open=True)
  runs = {}
  for role in models:  # All numbers are checked before anything is read.
    pick = lambda value: _of_role(value, role)
    config = language_model.LanguageModelConfig(
        seed=seed, batch_size=batch_size, z_loss=z_loss, input_weight=input_weight, num_devices=num_devices,
        optimizer=optimizer.OptimizerConfig(
            learning_rate=pick(learning_rate), num_steps=pick(steps), warmup_steps=warmup_steps, weight_decay=weight_decay))
    runs[role] = config, loop.LoopConfig(
        num_steps=pick(steps), log_every=log_every, evaluate_every=evaluate_every, save_every=save_every)
  folder, target_file = _target_of(pathlib.Path(text_run))
  target, params = formats.load(folder, dtype=jnp.float32)
  sha256, data = native.sha256_file(target_file), _rows(pathlib.Path(text_run))
  shape = dict(num_heads=num_heads, head_decay=head_decay, attention_heads=attention_heads, head_dim=head_dim,
               feature_weight=feature_weight, token_weight=token_weight)
  of_role = {
      role: heads_recipe.HeadsRun(
          _spec(role, target.embed_dim, hidden_dim=_of_role(hidden_dim, role), **shape), options, target, params, target_file,
          sha256)
      for role in runs}
  for role, (config, loop_config) in runs.items():
    complete = _train_one(
        of_role[role], data, pathlib.Path(text_run), config=config, loop_config=loop_config, stop=stop,
        tensorboard=tensorboard, progress=progress, operative_config=operative_config)
    if not complete:
      return False
  return True


def _spec(
    role, embed_dim, *, num_heads, hidden_dim, head_decay, attention_heads, head_dim, feature_weight, token_weight):
  if role == 'heads':
    return builtin.HeadsSpec('', heads_lib.HeadsConfig(
        kind='blockwise', num_heads=num_heads, embed_dim=embed_dim, hidden_dim=hidden_dim), head_decay)
  return builtin.AutoregressiveHeadSpec('', autoregressive_head.AutoregressiveHeadConfig(
      embed_dim=embed_dim, hidden_dim=hidden_dim, num_heads=attention_heads, num_kv_heads=1, head_dim=head_dim),
      feature_weight, token_weight)


def _train_one(run, data, text_run, *, config, loop_config, stop, tensorboard, progress, operative_config):
  """Trains and exports one kind of heads; whether it is complete."""
  try:
    learned, validated = (
        run.with_hidden_states(
            rows, directory=text_run / 'packed', batch_size=config.batch_size, stop=stop, show_progress=progress)
        for rows in data)
  except target_answers.Stopped:
    return False
  params, complete = language_model.train(
      run.objective(z_loss=config.z_loss), train_data=learned, validation_data=validated, config=config,
      loop_config=loop_config, output_dir=str(text_run / 'runs' / run.role), model_description=run.description(), stop=stop,
      tensorboard=tensorboard, show_progress=progress, operative_config=operative_config)
  if complete:
    path = text_run / f'{run.role}.safetensors'
    recipe = dict(dataclasses.asdict(config), rows=learned.fingerprint())
    native.save_safetensors(path, params, run.description() | {'recipe': recipe})
    print(f'exported {path}', flush=True)
  return complete


def _target_of(text_run):
  """(folder, .safetensors file) of the target of a text run."""
  folder = text_run / 'target'
  found = sorted(folder.glob('*.safetensors'))
  if len(found) != 1:
    raise errors.ConfigError(
        what='target of a text run', where=str(folder), got=f'{len(found)} .safetensors files', expected='one',
        fix='let `python -m specjax.train text --output_dir` of it complete first')
  return folder, found[0]


def _rows(text_run):
  """(rows to learn, rows to validate on) that the text run has packed."""
  folders = [path.parent for path in sorted((text_run / 'packed').glob('*/train.npz'))]
  if len(folders) != 1:
    raise errors.ConfigError(
        what='packed rows of a text run', where=str(text_run / 'packed'), got=f'{len(folders)} sets', expected='one',
        fix='a folder that was used with several configurations has several: remove those of the others')
  load = lambda path: dict(np.load(path, allow_pickle=False))
  validation = [load(path) for path in sorted(folders[0].glob('validation-*.npz'))]
  joined = {name: np.concatenate([rows[name] for rows in validation]) for name in validation[0]}
  return batches.PackedData(load(folders[0] / 'train.npz')), batches.PackedData(joined)


def _of_role(value: _T | Mapping[str, _T], role: str) -> _T:
  """The value for a role where it may be given by role."""
  if not isinstance(value, Mapping):
    return value
  if role not in value:
    raise errors.ConfigError(what='value by role', got=dict(value), expected=f'one for {role}')
  return value[role]
