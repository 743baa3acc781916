"""`convert`: a checkpoint of any format that is read, written in any that is written, and read back to be compared."""

import pathlib
import shutil
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from specjax.checkpoints import descriptions
from specjax.checkpoints import downloads
from specjax.checkpoints import formats
from specjax.checkpoints import hf
from specjax.checkpoints import leaves
from specjax.core import errors

DTYPES = ('float32', 'bfloat16', 'float16')

# Texts beside the weights that stay true of the converted model.
TOKENIZER_FILES = (
    'tokenizer.json', 'tokenizer.model', 'spiece.model', 'tokenizer_config.json', 'special_tokens_map.json',
    'added_tokens.json', 'generation_config.json')
_SPECIAL_TOKENS = ('pad_token_id', 'bos_token_id', 'eos_token_id', 'decoder_start_token_id')


class Row(NamedTuple):
  """What became of one parameter."""

  name: str
  stored_as: str
  shape: tuple[int, ...]
  dtype_in: str
  dtype_out: str
  num_bytes: int


class Report(NamedTuple):
  """What a conversion did: two places, two formats, the parameters in the order of writing, and what was checked."""

  source: str
  source_format: str
  target: str
  target_format: str
  config: Any
  rows: tuple[Row, ...]
  copied: tuple[str, ...]
  checks: tuple[str, ...]


def convert(
    source: str, target: str, *, format: str, dtype: str | None = None, source_format: str | None = None,
    config: str | None = None, max_shard_megabytes: int = 5000, allow_download: bool = False,
) -> Report:
  """Writes the model at `source` into the new folder `target`.

  Args:
    source: a checkpoint of any format that is read, or with `allow_download` hf://OWNER/NAME@COMMIT or
      kaggle://OWNER/MODEL/FRAMEWORK/VARIANT/VERSION.
    target: a folder that does not exist; it appears whole or not at all.
    format: hf, native (safetensors and JSON) or native_orbax.
    dtype: of every parameter: float32, bfloat16 or float16; none keeps each one's own.
    source_format: of `source`, where it cannot be seen.
    config: for sources without a configuration: the name of a published model (gemma2_2b, t5_1_1_base, ...) or a JSON
      file like those of native models.
    max_shard_megabytes: files of hf larger than this are split (10^6 bytes).
    allow_download: whether `source` may be fetched from the network.

  Raises:
    ConfigError: `target` exists, an unknown name. ParamError: an unknown format or dtype.
    CheckpointError: whatever is wrong with `source`, or what was written does not read back equal.
  """
  if dtype is not None and dtype not in DTYPES:
    raise errors.ParamError(what='dtype', got=dtype, expected=f'one of {", ".join(DTYPES)}')
  if max_shard_megabytes < 1:
    raise errors.ParamError(what='max_shard_megabytes', got=max_shard_megabytes, expected='at least 1')
  path = downloads.fetch(source) if allow_download and downloads.is_remote(source) else formats.local_path(source)
  source_format = source_format or formats.detect(path)
  read_config, found, extra = formats.open_checkpoint(
      path, format=source_format, config=None if config is None else _config(config))
  template = descriptions.template(descriptions.make_model(read_config, dtype='float32'), where=source)
  leaves.check(found, template, where=source, extra=extra)
  options = {}
  if format == 'hf':
    options = dict(max_shard_bytes=max_shard_megabytes * 10**6, special_tokens=_special_tokens(path, source_format))
  kind = None if dtype is None else np.dtype(jnp.dtype(dtype))
  with formats.writing(target, read_config, found, format=format, dtype=kind, **options) as folder:
    copied = _copy_texts(path, folder) if {format, source_format} == {'hf'} else ()
  written_config, written, _ = formats.open_checkpoint(target, format=format)
  checks = _compare(found, written, kind, target)
  if written_config == read_config:
    checks += ('configuration read back equal',)
  else:
    checks += ('configuration read back equal in all that changes a logit',)
  rows = tuple(
      Row(name, leaf.stored_as, tuple(leaf.shape), str(leaf.dtype), str(written[name].dtype),
          int(np.prod(leaf.shape)) * written[name].dtype.itemsize) for name, leaf in sorted(found.items()))
  return Report(source, source_format, str(target), format, read_config, rows, copied, checks)


def text(report: Report) -> str:
  """The report as a table, aligned for a terminal."""
  cells = [('parameter', 'stored as', 'shape', 'from', 'to', 'bytes')] + [
      (row.name, row.stored_as, 'x'.join(map(str, row.shape)), row.dtype_in, row.dtype_out, f'{row.num_bytes:,}')
      for row in report.rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
  lines.insert(1, '  '.join('-' * width for width in widths))
  total = sum(row.num_bytes for row in report.rows)
  count = sum(int(np.prod(row.shape)) for row in report.rows)
  lines += ['', f'{report.source} ({report.source_format}) -> {report.target} ({report.target_format})', str(report.config),
            f'{len(report.rows)} tensors, {count:,} parameters, {total:,} bytes']
  lines += [f'copied {name}' for name in report.copied]
  lines += [f'checked: {check}' for check in report.checks]
  return '\n'.join(line if line.isprintable() else ascii(line) for line in lines)


def _config(given):
  path = pathlib.Path(given)
  if path.suffix != '.json':
    return descriptions.published(given)
  return descriptions.parse(hf.read_json(path), where=given)


def _special_tokens(path, source_format):
  if source_format != 'hf':
    return {}
  fields = hf.read_config(path)
  fields = fields.get('text_config', {}) | fields if isinstance(fields.get('text_config'), dict) else fields
  is_id = lambda value: type(value) is int or isinstance(value, list) and all(type(item) is int for item in value)
  return {name: fields[name] for name in _SPECIAL_TOKENS if is_id(fields.get(name))}


def _copy_texts(source, folder):
  names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
  for name in names:
    shutil.copyfile(hf.inside(source, name), folder / name)
  return tuple(names)


def _compare(found, written, dtype, where):
  if found.keys() != written.keys():
    raise errors.CheckpointError(what='what was written', where=where, got=sorted(written), expected=sorted(found))
  for name, leaf in found.items():
    expected = leaves.read_as(leaf, dtype or leaf.dtype, name)
    got = leaves.read_as(written[name], expected.dtype, name)
    if written[name].dtype != expected.dtype or expected.tobytes() != got.tobytes():
      raise errors.CheckpointError(
          what=f'parameter {name}', where=where, got='other numbers than were written', fix='is the disk sound?')
  return ('every file against its SHA-256', f'{len(found)} tensors read back, bitwise equal, all finite')
