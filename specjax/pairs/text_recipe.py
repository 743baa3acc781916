"""`train`: a target and a drafter from scratch on real text; the entry of `python -m specjax.train text`.

    OUTPUT_DIR/data/<task>/{train,validation,test}.jsonl   what is learned, and what is held out for the evaluation
    OUTPUT_DIR/tokenizer/tokenizer.model                   trained on the train split, where none is given
    OUTPUT_DIR/packed/  OUTPUT_DIR/runs/<role>/            rows of tokens; checkpoints and metrics
    OUTPUT_DIR/target/  OUTPUT_DIR/drafter/                what `specjax.load` opens: weights, tokenizer, training.json
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
from typing import Any, Literal, Mapping, NamedTuple, Sequence

import numpy as np

from specjax.checkpoints import descriptions
from specjax.checkpoints import durable
from specjax.checkpoints import formats
from specjax.checkpoints import leaves
from specjax.core import checks
from specjax.core import errors
from specjax.models import gemma
from specjax.pairs import packed_examples
from specjax.tasks import framing
from specjax.tasks import packing
from specjax.tasks import text_mixture
from specjax.tasks import tokenizers
from specjax.tasks import vocabulary
from specjax.training import batches
from specjax.training import language_model
from specjax.training import loop
from specjax.training import optimizer
from specjax.training import stopping

ROLES = ('target', 'drafter')
MAX_VOCAB_SIZE = 1 << 15  # packed rows have 16 bits
MAX_REPEATS = 1000
# Every third layer sees everything and so does the last one; the others see a window.
_GLOBAL_EVERY = 3
_TRAINING = 'training.json'

_ByRole = int | Mapping[str, int]


def train(
    *, tasks: Sequence[str], output_dir: str, data_dir: str | None, held_out_tasks: Sequence[str],
    held_out_percent: int, repeats: Mapping[str, int], input_key: str, target_key: str,
    tokenizer: str | None, vocab_size: int, tokenizer_characters: int,
    models: Sequence[str], embed_dim: _ByRole, num_heads: _ByRole, head_dim: _ByRole, hidden_dim: _ByRole,
    num_layers: _ByRole, window: int, export_format: Literal['hf', 'native'],
    seed: int, num_validation: int, sequence_length: int, steps: _ByRole, batch_size: int,
    learning_rate: float | Mapping[str, float], warmup_steps: _ByRole, weight_decay: float, z_loss: float,
    input_weight: float, log_every: int, evaluate_every: int, save_every: int, tensorboard: bool, progress: bool,
    stop: stopping.StopRequest, operative_config: str | None = None,
) -> bool:
  """Trains Gemma-3-style decoders on tasks and files; whether all of them are complete.

  Called again it goes on from the newest valid checkpoints, bit for bit. Sizes may be given for both models or by role.

  Args:
    tasks: of the catalogue (`eval list tasks`), or jsonl:PATH, tsv:PATH, text:PATH.
    output_dir: for everything, see above.
    data_dir: the folder of the catalogue's data sets.
    held_out_tasks: tasks of the catalogue of whose questions nothing may be learned, beside the held-out splits.
    held_out_percent: of documents, for validation and again for test, where a data set has no such split.
    repeats: how often a pass over the data takes a task, by name; 1 where it is not named.
    input_key, target_key: fields of jsonl: and tsv: files.
    tokenizer: a SentencePiece model or tokenizer.json; None trains one.
    vocab_size: pieces of the tokenizer that is trained.
    tokenizer_characters: of text that it is trained on.
    models: 'target', 'drafter' or both, trained one after the other.
    embed_dim, num_heads, head_dim, hidden_dim, num_layers: of the models; there is one head of keys.
    window: tokens that local layers see.
    export_format: 'hf' (Hugging Face) or 'native'.
    seed: of initialisation and of the order of examples.
    num_validation: items of each task that the validation loss is taken over.
    sequence_length: tokens of a packed row.
    steps: length of the run and of its learning-rate schedule.
    batch_size: rows per step.
    learning_rate: the peak.
    warmup_steps: of linear warm-up.
    weight_decay: decoupled, of matrices.
    z_loss: weight of the squared log-normaliser.
    input_weight: loss weight of questions. Running text has weight 1 throughout.
    log_every, evaluate_every, save_every: steps between training reports, validations, checkpoints.
    tensorboard: write TensorBoard event files (imports TensorFlow).
    progress: show a progress bar.
    stop: asks to save and return.
    operative_config: kept beside each model's checkpoints.

  Raises:
    ConfigError: an unknown task or role, no data, or `output_dir` holds a run of another configuration.
    DataError: a file without text, a split without a document. VocabError: a tokenizer that does not fit.
    ParamError, LimitError: a number without meaning, before anything is read.
  """
  output_dir, runs = pathlib.Path(output_dir), {}
  for role in _checked_roles(models):  # All numbers are checked before anything is read.
    pick = lambda value: _of_role(value, role)
    shape = dict(
        embed_dim=pick(embed_dim), num_heads=pick(num_heads), head_dim=pick(head_dim), hidden_dim=pick(hidden_dim),
        num_layers=pick(num_layers), window=window)
    for name, value in shape.items():
      checks.integer(name, value, low=1, high=1 << 20)
    config = language_model.LanguageModelConfig(
        seed=seed, batch_size=batch_size, z_loss=z_loss, input_weight=input_weight,
        optimizer=optimizer.OptimizerConfig(
            learning_rate=pick(learning_rate), num_steps=pick(steps), warmup_steps=pick(warmup_steps),
            weight_decay=weight_decay))
    runs[role] = shape, config, loop.LoopConfig(
        num_steps=pick(steps), log_every=log_every, evaluate_every=evaluate_every, save_every=save_every)
  _check_data_numbers(
      tasks, repeats, held_out_percent=held_out_percent, vocab_size=vocab_size, sequence_length=sequence_length,
      tokenizer_characters=tokenizer_characters, num_validation=num_validation, export_format=export_format)
  data = _prepared(
      output_dir, tasks, data_dir, held_out_tasks, tokenizer, dict(
          held_out_percent=held_out_percent, input_key=input_key, target_key=target_key),
      vocab_size=vocab_size, characters=tokenizer_characters, repeats=repeats, length=sequence_length,
      num_validation=num_validation, seed=seed)
  for role, (shape, config, loop_config) in runs.items():
    complete = _train_one(
        role, decoder_config(vocab_size=data.tokenizer.vocab_size, **shape), data, output_dir, config=config,
        loop_config=loop_config, export_format=export_format, stop=stop, tensorboard=tensorboard, progress=progress,
        operative_config=operative_config)
    if not complete:
      return False
  if all((output_dir / role).is_dir() for role in ROLES):
    print(_how_to_evaluate(output_dir, data.corpora), flush=True)
  return True


def decoder_config(
    *, vocab_size: int, embed_dim: int, num_heads: int, head_dim: int, hidden_dim: int, num_layers: int, window: int
) -> gemma.DecoderConfig:
  """The configuration of a decoder as Gemma 3 builds them, which Hugging Face's layout can hold."""
  is_global = lambda index: (index + 1) % _GLOBAL_EVERY == 0 or index == num_layers - 1
  return gemma.DecoderConfig(
      vocab_size=vocab_size, embed_dim=embed_dim, hidden_dim=hidden_dim, num_heads=num_heads, num_kv_heads=1,
      head_dim=head_dim, layer_kinds=tuple(gemma.GLOBAL if is_global(i) else gemma.LOCAL for i in range(num_layers)),
      activation='gelu', window=window, norm_plus_one=True, post_norms=True, query_key_norm=True, scale_embeddings=True,
      tied_head=True)


def num_multiplications(config: gemma.DecoderConfig) -> int:
  """Multiplications by weights for one token: what a model costs, attention aside."""
  heads = 2 * config.num_heads + 2 * config.num_kv_heads
  of_layer = config.embed_dim * (heads * config.head_dim + 3 * config.hidden_dim)
  return config.num_layers * of_layer + config.vocab_size * config.embed_dim


class _Data(NamedTuple):
  """What the models of a run share.

  Attributes:
    corpora: that are learned.
    tokenizer: of all models.
    tokenizer_files: by their names beside a checkpoint.
    train: rows.
    validation: rows by task.
    description: JSON-able, of where all that comes from.
  """

  corpora: list[text_mixture.Corpus]
  tokenizer: tokenizers.Tokenizer
  tokenizer_files: Mapping[str, pathlib.Path]
  train: batches.PackedData
  validation: Mapping[str, batches.PackedData]
  description: dict[str, Any]


def _checked_roles(models):
  if not models or len(set(models)) != len(models) or not set(models) <= set(ROLES):
    raise errors.ConfigError(what='models', got=list(models), expected='target, drafter or both')
  return models


def _check_data_numbers(
    tasks, repeats, *, held_out_percent, vocab_size, tokenizer_characters, sequence_length, num_validation,
    export_format,
):
  if not tasks or len(set(tasks)) != len(tasks):
    raise errors.ConfigError(what='tasks', got=list(tasks), expected='at least one, each once')
  for name, count in repeats.items():
    if name not in tasks:
      raise errors.ConfigError(what=f'repeats of {name!r}', expected=f'one of {", ".join(tasks)}')
    checks.integer(f'repeats of {name}', count, low=1, high=MAX_REPEATS)
  checks.integer('held_out_percent', held_out_percent, low=1, high=45)
  checks.integer('vocab_size', vocab_size, low=1, high=MAX_VOCAB_SIZE, fix='rows of tokens are kept in 16 bits')
  checks.choice('export_format', export_format, ('hf', 'native'))
  checks.integer('tokenizer_characters', tokenizer_characters, low=1, high=1 << 30)
  checks.integer('sequence_length', sequence_length, low=2, high=MAX_VOCAB_SIZE)
  checks.integer('num_validation', num_validation, low=1, high=1 << 30)


def _of_role(value, role):
  if not isinstance(value, Mapping):
    return value
  if role not in value:
    raise errors.ConfigError(what='value by role', got=dict(value), expected=f'one for {role}')
  return value[role]


def _prepared(
    output_dir, tasks, data_dir, held_out_tasks, tokenizer, options, *, vocab_size, characters, repeats, length,
    num_validation, seed,
):
  """The `_Data` of a run; what is made is kept below `output_dir`."""
  corpora = [text_mixture.load(name, data_dir=data_dir, **options) for name in tasks]
  never = [text for name in held_out_tasks for text in text_mixture.questions(name, data_dir=data_dir)]
  corpora, dropped = text_mixture.disjoint(corpora, never=never)
  text_mixture.write(corpora, output_dir / 'data')
  path = pathlib.Path(tokenizer) if tokenizer is not None else _own_tokenizer(
      output_dir / 'tokenizer', corpora, vocab_size=vocab_size, characters=characters)
  loaded = tokenizers.load(path)
  check_tokenizer(loaded, where=str(path))
  learned, validated, table = _packed(
      output_dir / 'packed', corpora, loaded, repeats=repeats, length=length, num_validation=num_validation, seed=seed)
  for corpus in corpora:
    table[corpus.name] |= dict(asked_elsewhere=dropped[corpus.name], unreadable=corpus.num_bad)
  print(_as_table(table, len(learned)), flush=True)
  description = dict(tokenizer_sha256=loaded.sha256, tasks=table, train_rows=learned.fingerprint())
  return _Data(corpora, loaded, tokenizers.files(path), learned, validated, description)


def check_tokenizer(tokenizer: tokenizers.Tokenizer, *, where: str) -> None:
  """`VocabError` for a tokenizer that no model can be trained with here."""
  if tokenizer.vocab_size > MAX_VOCAB_SIZE:
    raise errors.VocabError(
        what='tokenizer', where=where, got=f'{tokenizer.vocab_size} tokens', expected=f'at most {MAX_VOCAB_SIZE}',
        fix='rows of tokens are kept in 16 bits: train a smaller one')
  if tokenizer.eos_id < 0:
    raise errors.VocabError(
        what='tokenizer', where=where, got='no token that ends a text', expected='an eos token',
        fix='name one in tokenizer_config.json, or train with one')


def _own_tokenizer(folder, corpora, *, vocab_size, characters):
  """The folder of a tokenizer that is trained on the train splits, unless it is there."""
  lines = text_mixture.lines(corpora, characters=characters)
  digest = hashlib.sha256('\n'.join(lines).encode('utf-8', 'surrogatepass')).hexdigest()
  identity = dict(text_sha256=digest, vocab_size=vocab_size, num_lines=len(lines))
  if folder.exists():
    stored = json.loads((folder / _TRAINING).read_text())
    if {name: stored.get(name) for name in identity} != identity:
      raise errors.ConfigError(
          what='tokenizer of the run to resume', where=str(folder), got='one of another text or size',
          expected=identity, fix='choose another --output_dir or restore the old setting')
    return folder
  print(f'training a tokenizer of {vocab_size} pieces on {sum(map(len, lines)):,} characters', flush=True)
  content = vocabulary.train_model(lines, vocab_size=vocab_size, symbols=['\n'])
  with durable.creating(folder) as temporary:
    (temporary / 'tokenizer.model').write_bytes(content)
    (temporary / _TRAINING).write_text(descriptions.as_text(identity | {'sha256': hashlib.sha256(content).hexdigest()}))
  return folder


def _packed(folder, corpora, tokenizer, *, repeats, length, num_validation, seed):
  """(rows to learn, rows by task to validate on, what became of each task); kept below `folder`."""
  by_name = {corpus.name: corpus for corpus in corpora}
  asked = framing.make('none', tokenizer=tokenizer, family='decoder-only')

  @functools.cache
  def framed(name, split):
    items = by_name[name].splits[split]
    found = text_mixture.framed(
        items if split == 'train' else items[:num_validation], by_name[name], asked, length=length)
    if not found.pieces:
      raise errors.DataError(
          what=f'{split} examples of {name}', got='none that fits', expected=f'at most {length} tokens in one of them',
          fix='raise sequence_length')
    return found

  def rows(name, pieces_of):
    return batches.PackedData(packed_examples.kept(folder / f'{name}.npz', lambda: packing.pack_pieces(
        pieces_of(), length=length, pad_id=max(tokenizer.pad_id, 0))))

  def learned():
    pieces = [piece for name in by_name for piece in framed(name, 'train').pieces * repeats.get(name, 1)]
    return [pieces[index] for index in np.random.default_rng(seed).permutation(len(pieces))]

  folder = folder / _identity(corpora, tokenizer, dict(repeats), length, num_validation, seed)
  train_rows = rows('train', learned)
  validation_rows = {
      name: rows(f'validation-{corpus.folder}', lambda name=name: framed(name, 'validation').pieces)
      for name, corpus in by_name.items()}
  path = folder / 'tasks.json'
  if not path.is_file():
    table = {}
    for name, corpus in by_name.items():
      found = framed(name, 'train')
      table[name] = {split: len(items) for split, items in corpus.splits.items()} | dict(
          tokens=sum(len(piece.prompt) + len(piece.answer) - 1 for piece in found.pieces), repeats=repeats.get(name, 1),
          cut=found.num_cut, left_out=found.num_left_out)
    durable.replace(path, descriptions.as_text(table).encode())
  return train_rows, validation_rows, json.loads(path.read_text())


def _identity(corpora, tokenizer, *settings):
  """A name for rows: a hash of all that they are made of."""
  digest = hashlib.sha256(json.dumps([tokenizer.sha256, *settings], sort_keys=True).encode())
  for corpus in corpora:
    for split in ('train', 'validation'):
      texts = [[item.inputs, item.targets] for item in corpus.splits[split]]
      digest.update(json.dumps([corpus.name, corpus.template, split, texts]).encode())
  return digest.hexdigest()[:16]


def _train_one(
    role, model_config, data, output_dir, *, config, loop_config, export_format, stop, tensorboard, progress,
    operative_config,
):
  """Trains one model and exports it; whether it is complete."""
  model = descriptions.make_model(model_config, dtype='float32')
  objective = language_model.objective_of(model, z_loss=config.z_loss)
  description = descriptions.describe(model_config) | dict(
      tokenizer_sha256=data.tokenizer.sha256, multiplications_per_token=num_multiplications(model_config))
  params, complete = language_model.train(
      objective, train_data=data.train, validation_data=_joined(data.validation), config=config,
      loop_config=loop_config, output_dir=str(output_dir / 'runs' / role), model_description=description, stop=stop,
      tensorboard=tensorboard, show_progress=progress, operative_config=operative_config)
  if complete:
    by_task = {
        name: language_model.make_evaluate(objective, rows, batch_size=config.batch_size)(params)
        for name, rows in data.validation.items()}
    print('\n'.join(f'{role} {name}: loss {found["loss"]:.4f}, accuracy {found["accuracy"]:.4f}'
                    for name, found in by_task.items()), flush=True)
    recipe = dict(dataclasses.asdict(config), model=description, **data.description)
    _export(output_dir / role, model_config, params, data, export_format, dict(recipe, validation=by_task))
  return complete


def _joined(rows):
  """The rows of all tasks, those of each spread over the whole: an evaluation leaves out an incomplete last batch."""
  spread = np.argsort(np.concatenate([(np.arange(len(one)) + 0.5) / len(one) for one in rows.values()]), kind='stable')
  names = next(iter(rows.values())).arrays
  return batches.PackedData({
      name: np.concatenate([one.arrays[name] for one in rows.values()])[spread] for name in names})


def _export(folder, model_config, params, data, export_format, training):
  """Writes the folder of a finished model, unless the same model is there."""
  content = descriptions.as_text(training)
  if folder.exists():
    if not (folder / _TRAINING).is_file() or (folder / _TRAINING).read_text() != content:
      raise errors.ConfigError(
          what='folder of a trained model', where=str(folder), got='another model', expected='none, or this one',
          fix='remove it or choose another --output_dir')
    return
  options, tokenizer = {}, data.tokenizer
  if export_format == 'hf':
    ids = dict(bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    options = dict(special_tokens={name: token if token >= 0 else None for name, token in ids.items()})
  with formats.writing(folder, model_config, leaves.of(params), format=export_format, **options) as temporary:
    for name, path in data.tokenizer_files.items():
      shutil.copyfile(path, temporary / name)
    (temporary / _TRAINING).write_text(content)
  print(f'exported {folder}', flush=True)


def _as_table(table, num_rows):
  """The tasks of a run for people."""
  names = list(next(iter(table.values())))
  cells = [['task', *names]] + [[name, *(f'{row[column]:,}' for column in names)] for name, row in table.items()]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [' '.join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row, widths[1:]))])
           for first, *row in cells]
  return '\n'.join([*lines, f'{num_rows:,} rows'])


def _how_to_evaluate(output_dir, corpora):
  """The command that asks the pair what was held out."""
  names = ','.join(corpus.named(output_dir / 'data') for corpus in corpora)
  pair = '::'.join(str(output_dir / role) for role in ROLES)
  return f'python -m specjax.eval --pairs={pair} --data_dir={output_dir / "data"} --tasks={names} --output_path=DIR'
