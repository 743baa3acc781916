"""specjax's own formats: training checkpoints (orbax behind a SHA-256 manifest) and models (safetensors beside JSON).

A training checkpoint is one directory per step:

    step_00000100/
      arrays/         an orbax PyTree of leaves with flat, dotted names
      manifest.json   {"body": {step, leaves, files: {path: [bytes, sha256]}, metadata}, "sha256": of the body}

It is written under a temporary name, every file and directory is synced, and one rename commits it: a process killed at
any moment leaves the older steps as they were. Orbax payloads carry no checksum of their own (every flipped payload bit
restored silently), hence the manifest, verified before a byte is parsed.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import Any

from absl import logging
import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from specjax.checkpoints import durable
from specjax.core import errors

_STEP_NAME = re.compile(r'step_(\d{8,})')
_MAX_DESCRIPTION_BYTES = 1 << 20
_LEAF_NAME = re.compile(r'[A-Za-z0-9_.\-/]+')


def flatten(tree: Any, *, separator: str = '/') -> dict[str, Any]:
  """Leaves of a pytree by name, in the order of the tree; names are the keys on the way, joined by `separator`."""
  named = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = separator.join(_key_name(key) for key in path)
    if not _LEAF_NAME.fullmatch(name) or name in named:
      raise errors.CheckpointError(what=f'leaf name {name!r}', fix='leaf names are unique and match [A-Za-z0-9_.-]+')
    named[name] = leaf
  return named


def step_of(path: str | os.PathLike) -> int | None:
  """The step that a directory of `TrainingCheckpoints` is named after, or None where it has another name."""
  match = _STEP_NAME.fullmatch(pathlib.Path(path).name)
  return int(match[1]) if match else None


def sha256_file(path: str | os.PathLike) -> str:
  """SHA-256 of a file's bytes, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


class TrainingCheckpoints:
  """The checkpoints of one training run, newest valid first.

  Args:
    directory: where the step directories live; created when missing.
    keep: how many of the newest checkpoints stay on disk, at least 1.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
    if keep < 1:
      raise errors.ParamError(what='number of checkpoints to keep', got=keep, expected='at least 1')
    self._directory = pathlib.Path(directory).absolute()  # Orbax refuses any other.
    self._keep = keep
    self._directory.mkdir(parents=True, exist_ok=True)

  def steps(self) -> list[int]:
    """Steps that have a directory, oldest first; stray entries are named in a warning and left alone."""
    found = []
    for entry in sorted(self._directory.iterdir()):
      match = _STEP_NAME.fullmatch(entry.name)
      if match and entry.is_dir() and not entry.is_symlink():
        found.append(int(match.group(1)))
      elif not durable.is_temporary(entry.name):
        logging.warning('%s: ignored, it is not a checkpoint', entry)
    return sorted(found)

  def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> pathlib.Path:
    """Writes `tree` and the JSON-able `metadata` as the checkpoint of `step`; returns its directory, already durable."""
    import orbax.checkpoint as ocp  # Two seconds of import that loading a model does not need.

    durable.remove_leftovers(self._directory)  # Of a process that was killed while saving.
    final = self.path(step)
    temporary = durable.temporary_path(final)
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(tree, separator='.').items()}
    temporary.mkdir()
    with ocp.PyTreeCheckpointer() as checkpointer:
      checkpointer.save(temporary / 'arrays', leaves)
    body = {
        'step': step,
        'leaves': {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()},
        'files': {name: [path.stat().st_size, sha256_file(path)] for name, path in _files_below(temporary).items()},
        'metadata': metadata,
    }
    (temporary / 'manifest.json').write_text(_sealed(body))
    durable.sync_tree(temporary)
    if final.exists():  # Only a damaged one can be in the way: a valid one would have been resumed from.
      shutil.rmtree(final)
    os.rename(temporary, final)
    durable.sync(self._directory)
    self._prune(step)
    return final

  def _prune(self, newest):
    """Leaves the `keep` newest steps up to `newest`; later ones are damaged, or they would have been resumed from."""
    steps = self.steps()
    kept = [step for step in steps if step <= newest][-self._keep :]
    for step in sorted(set(steps) - set(kept)):
      shutil.rmtree(self.path(step))

  def path(self, step: int) -> pathlib.Path:
    """The directory of a step, whether it exists or not."""
    return self._directory / f'step_{step:08d}'

  def restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
    """The tree saved at `step` in the structure of `template`, and its metadata.

    Raises:
      CheckpointError: naming the file that is damaged, or every leaf that differs from `template`.
    """
    import orbax.checkpoint as ocp

    directory = self.path(step)
    body = _verified_manifest(directory, step)
    expected = flatten(template, separator='.')
    stored = {name: (dtype, tuple(shape)) for name, (dtype, shape) in body['leaves'].items()}
    _check_leaves(stored, {name: (str(leaf.dtype), tuple(leaf.shape)) for name, leaf in expected.items()}, directory)
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored}
    with ocp.PyTreeCheckpointer() as checkpointer:
      try:
        leaves = checkpointer.restore(directory / 'arrays', restore_args=as_numpy)
      except Exception as error:  # Orbax and TensorStore raise many types; every one means the same here.
        raise errors.CheckpointError(what='unreadable arrays', where=str(directory), got=str(error)) from error
    _check_leaves({name: (str(leaf.dtype), tuple(leaf.shape)) for name, leaf in leaves.items()}, stored, directory)
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in expected]), body['metadata']

  def newest(self) -> int | None:
    """The newest step whose files are intact, or None when there is no checkpoint at all.

    A damaged checkpoint is named in an error log and the next older one is tried.

    Raises:
      CheckpointError: when there are checkpoints and every one is damaged.
    """
    steps = self.steps()
    for step in reversed(steps):
      try:
        _verified_manifest(self.path(step), step)
      except errors.CheckpointError as error:
        logging.error('checkpoint of step %d is damaged, falling back to an older one: %s', step, error)
        continue
      return step
    if steps:
      raise errors.CheckpointError(
          what='no valid checkpoint', where=str(self._directory), got=steps, fix='every one is damaged; see the log'
      )
    return None

  def metadata(self, step: int) -> dict[str, Any]:
    """What was saved beside the tree of `step`, after its files have been verified."""
    return _verified_manifest(self.path(step), step)['metadata']

  def restore_newest(self, template: Any) -> tuple[int, Any, dict[str, Any]] | None:
    """(step, tree, metadata) of the `newest` step, or None when there is no checkpoint at all."""
    step = self.newest()
    return None if step is None else (step, *self.restore(step, template))


def save_safetensors(
    path: str | os.PathLike, params: Any, description: dict[str, Any], *, dtype: Any = ml_dtypes.bfloat16
) -> None:
  """Writes a model as safetensors of `dtype` with '/'-joined names, and `description` as JSON beside it.

  The JSON (same name, suffix .json) also receives the SHA-256 of the tensor file and the number of parameters. Both
  files are replaced atomically, the JSON last.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
  for name, leaf in leaves.items():
    if not _is_finite(leaf.astype(dtype)):
      raise errors.CheckpointError(
          what=f'leaf {name}', got='NaN or infinity', expected=f'finite weights of {np.dtype(dtype)}')
  # Not ascontiguousarray, which makes a list of a single number.
  tensors = {name: np.asarray(leaf.astype(dtype), order='C') for name, leaf in leaves.items()}
  durable.replace(path, safetensors.numpy.save(tensors))
  total = sum(leaf.size for leaf in leaves.values())
  description = dict(description, sha256=sha256_file(path), num_parameters=total)
  durable.replace(path.with_suffix('.json'), (json.dumps(description, indent=2, sort_keys=True) + '\n').encode())


def load_description(path: str | os.PathLike) -> dict[str, Any]:
  """The JSON beside a model file, with the tensor file's SHA-256 verified."""
  path = pathlib.Path(path)
  beside = path.with_suffix('.json')
  if not path.is_file() or not beside.is_file():
    raise errors.CheckpointError(what='model file', where=str(path), got='no such file', fix='run scripts/train_pairs.sh')
  try:
    if beside.stat().st_size > _MAX_DESCRIPTION_BYTES:
      raise ValueError(f'more than {_MAX_DESCRIPTION_BYTES} bytes')
    description = json.loads(beside.read_text())
    expected = description['sha256']
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise errors.CheckpointError(what='model description', where=str(beside), got=repr(error)) from error
  got = sha256_file(path)
  if got != expected:
    raise errors.CheckpointError(what='SHA-256', where=str(path), got=got, expected=expected, fix='fetch the file again')
  return description


def load_safetensors(path: str | os.PathLike, template: Any, *, dtype: Any = None) -> Any:
  """Parameters from a safetensors file in the structure of `template`, cast to `dtype` (or to the template's dtypes).

  Args:
    path: the file.
    template: pytree of arrays or ShapeDtypeStructs, for example `jax.eval_shape(model.init, key)`.
    dtype: floating dtype of every leaf; None takes each leaf's own from the template.

  Raises:
    CheckpointError: listing every missing, extra, misshapen or non-finite leaf at once.
  """
  try:
    stored = safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
    raise errors.CheckpointError(what='unreadable model file', where=str(path), got=str(error)) from error
  expected = flatten(template)
  kind = lambda leaf: 'float' if jax.numpy.issubdtype(leaf.dtype, np.floating) else str(leaf.dtype)
  _check_leaves(
      {name: (kind(leaf), leaf.shape) for name, leaf in stored.items()},
      {name: (kind(leaf), tuple(leaf.shape)) for name, leaf in expected.items()},
      path,
      problems=[f'{name} holds NaN or infinity' for name, leaf in stored.items() if not _is_finite(leaf)],
  )
  leaves = [jax.numpy.asarray(stored[name], dtype or leaf.dtype) for name, leaf in expected.items()]
  return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _key_name(key):
  match key:
    case jax.tree_util.DictKey():
      return str(key.key)
    case jax.tree_util.GetAttrKey():
      return key.name
    case jax.tree_util.SequenceKey():
      return str(key.idx)
    case jax.tree_util.FlattenedIndexKey():
      return str(key.key)
  raise errors.CheckpointError(what='pytree key', got=key, expected='a dict, attribute or sequence key')


def _files_below(directory):
  """Files by relative name, sorted; a symbolic link could point outside the directory and is refused."""
  files = {}
  for path in sorted(directory.rglob('*')):
    if path.is_symlink():
      raise errors.CheckpointError(what='symbolic link in a checkpoint', where=str(path))
    if path.is_file():
      files[path.relative_to(directory).as_posix()] = path
  return files


def _sealed(body):
  digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
  return json.dumps({'body': body, 'sha256': digest}, sort_keys=True)


def _verified_manifest(directory, step):
  """The manifest's body, after every file below `directory` has been checked against it."""
  manifest = directory / 'manifest.json'
  try:
    content = json.loads(manifest.read_text())
    body = content['body']
    intact = _sealed(body) == json.dumps(content, sort_keys=True) and body['step'] == step
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    raise errors.CheckpointError(what='manifest', where=str(manifest), got=repr(error)) from error
  if not intact:
    raise errors.CheckpointError(what='manifest', where=str(manifest), got='a damaged or foreign manifest')
  present = _files_below(directory)
  present.pop('manifest.json')
  for name in sorted(body['files'].keys() | present.keys()):
    if name not in present or name not in body['files']:
      problem = 'missing' if name not in present else 'not in the manifest'
      raise errors.CheckpointError(what='checkpoint file', where=str(directory / name), got=problem)
    size, digest = body['files'][name]
    if present[name].stat().st_size != size or sha256_file(present[name]) != digest:
      raise errors.CheckpointError(what='checkpoint file', where=str(directory / name), got='damaged: SHA-256 differs')
  return body


def _is_finite(leaf):
  return bool(np.all(np.isfinite(leaf.astype(np.float32))))


def _check_leaves(got, expected, where, *, problems=()):
  problems = [*problems, *(f'missing {name}' for name in expected if name not in got)]
  problems += [f'extra {name}' for name in got if name not in expected]
  problems += [
      f'{name} is {got[name][0]}{list(got[name][1])}, expected {expected[name][0]}{list(expected[name][1])}'
      for name in expected
      if name in got and got[name] != expected[name]
  ]
  if problems:
    raise errors.CheckpointError(
        what='checkpoint of another model', where=str(where), got='; '.join(problems),
        fix='check --model and the configuration it was trained with',
    )
