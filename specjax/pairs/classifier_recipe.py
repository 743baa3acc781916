"""`train`: KL classifiers of the built-in pairs; the entry function of `python -m specjax.train classifier`.

    OUTPUT_DIR/<pair>/points/<split>_<answers>/    hidden states and divergences (`pairs.kl_points`)
    OUTPUT_DIR/<pair>/<name>/                      checkpoints and metrics of a classifier
    OUTPUT_DIR/<pair>/report.json                  figures on held-out questions
    OUTPUT_DIR/<pair>/held_out.npz                 what the figures and plots are made of
    EXPORT_DIR/<pair>/<name>.safetensors           the classifier, with a .json beside it
"""

import contextlib
import dataclasses
import hashlib
import importlib.resources
import itertools
import json
import os
import pathlib
from typing import Any, Iterator, Literal, Mapping, NamedTuple, Sequence

import jax.numpy as jnp
import numpy as np

from specjax.checkpoints import classifier_file
from specjax.checkpoints import durable
from specjax.checkpoints import native
from specjax.core import checks
from specjax.core import errors
from specjax.decode import pair as pair_lib
from specjax.metrics import calibration
from specjax.pairs import builtin
from specjax.pairs import kl_points
from specjax.tasks import synthetic
from specjax.training import kl_classifier
from specjax.training import language_model
from specjax.training import loop
from specjax.training import optimizer
from specjax.training import stopping

DEFAULT = 'kl_classifier'
SPLITS = ('train', 'calibration', 'held_out')
_PERCENT = {'calibration': 10, 'held_out': 10}
MAX_QUESTIONS = 1 << 30
# Nats, of the histogram: shares of tokens at least so far apart are what the paper's first table has.
EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0)
AT_LEAST = (2.0, 5.0, 10.0)


def train(
    *, pairs: Sequence[str], classifiers: Mapping[str, Sequence[int]], output_dir: str, export_dir: str | None,
    models_dir: str | None, seed: int, num_questions: int, domains: Sequence[str], answers: Sequence[str],
    max_new_tokens: int, level: float | Mapping[str, float] | None, positive_rate: float,
    direction: Literal['target_drafter', 'drafter_target'], learns: Literal['class', 'log_divergence'], max_knots: int,
    steps: int, batch_size: int, point_batch_size: int, learning_rate: float, warmup_steps: int, weight_decay: float,
    log_every: int, evaluate_every: int, save_every: int, tensorboard: bool, progress: bool, stop: stopping.StopRequest,
    operative_config: str | None = None,
) -> bool:
  """Collects points of built-in pairs, trains and calibrates classifiers on them; whether all are complete.

  Called again it goes on where it was, the training bit for bit.

  Args:
    pairs: names of built-in pairs.
    classifiers: hidden widths by name; [] is a linear probe. Each is exported under its name.
    output_dir: see above.
    export_dir: where the classifiers go; None exports nothing.
    models_dir: where <pair>/target.safetensors and <pair>/drafter.safetensors lie; None is the package's own.
    seed: of the questions, of sampled answers, of the initialisation and of the order of points.
    num_questions: in all; a tenth is for calibration and a tenth held out, by the hash of a question's text.
    domains: of the questions, in turn.
    answers: which texts the points come from, some of 'reference', 'target', 'drafter', 'backoff'; see
      `kl_points.Answers`.
    max_new_tokens: of sampled answers.
    level: nats, for all pairs or by pair; the classifier gives the probability of a divergence above it. None takes the
      one that leaves `positive_rate` of the training points of the first kind of answers above it.
    positive_rate: in (0, 1); unused with a level.
    direction: of the divergence, 'target_drafter' is KL(target || drafter).
    learns: 'class', or 'log_divergence' for a regression whose sign is the class.
    max_knots: of the isotonic calibration.
    steps: of training; also of its learning-rate schedule.
    batch_size: points per step.
    point_batch_size: answers per pass of the two models.
    learning_rate, warmup_steps, weight_decay: see `optimizer.OptimizerConfig`.
    log_every, evaluate_every, save_every: steps between training reports, validations, checkpoints.
    tensorboard: write TensorBoard event files (imports TensorFlow).
    progress: show progress bars.
    stop: asks to save and return.
    operative_config: kept beside each classifier's checkpoints.

  Raises:
    ConfigError: an unknown pair or kind of answers, or `output_dir` holds a run of another configuration.
    ParamError, LimitError: a number without meaning, before anything is collected.
  """
  checks.integer('num_questions', num_questions, low=1, high=MAX_QUESTIONS)
  questions = Questions(seed, num_questions, tuple(domains))
  _check(pairs, classifiers, answers, positive_rate, max_knots)
  config = language_model.LanguageModelConfig(
      seed=seed, batch_size=batch_size, optimizer=optimizer.OptimizerConfig(
          learning_rate=learning_rate, num_steps=steps, warmup_steps=warmup_steps, weight_decay=weight_decay))
  loop_config = loop.LoopConfig(
      num_steps=steps, log_every=log_every, evaluate_every=evaluate_every, save_every=save_every)
  levels = {name: level.get(name) if isinstance(level, Mapping) else level for name in pairs}
  for name, value in levels.items():
    if value is not None:
      checks.real('level', value, low=kl_classifier.SMALLEST_DIVERGENCE, where=name)
  for name in pairs:
    run = _Run(
        files=Files.of(name, models_dir), pair=builtin.load_pair(name, data_dir=models_dir), questions=questions,
        kinds=tuple(answers), max_new_tokens=max_new_tokens, direction=direction, batch_size=point_batch_size,
        stop=stop, directory=pathlib.Path(output_dir) / name, progress=progress)
    found = run.collect(levels[name], positive_rate)
    if found is None:
      return False
    chosen, data = found
    trained = {}
    for title, widths in classifiers.items():
      shape = classifier_file.ClassifierConfig(
          embed_dim=run.pair.drafter.embed_dim, hidden_dims=tuple(widths), level=chosen, direction=direction)
      probe = _train_one(
          title, shape, data, run, config=config, loop_config=loop_config, learns=learns, tensorboard=tensorboard,
          progress=progress, stop=stop, operative_config=operative_config)
      if probe is None:
        return False
      trained[title] = Trained.of(shape, probe, data, max_knots)
    report = _report(run, chosen, trained, data)
    if export_dir is not None:
      recipe = dict(
          dataclasses.asdict(config), learns=learns, task='specjax_synthetic', num_questions=num_questions,
          domains=list(domains), answers=list(answers), num_points=len(data['train']))
      for title, one in trained.items():
        path = pathlib.Path(export_dir) / name / f'{title}.safetensors'
        classifier_file.save(
            path, one.probe, one.config, target=run.files.target, drafter=run.files.drafter, recipe=recipe,
            held_out=report['classifiers'][title]['calibrated'])
        print(f'exported {path}', flush=True)
  return True


def load_classifier(
    name: str, *, classifier: str = DEFAULT, dtype: Any = jnp.float32, data_dir: str | os.PathLike | None = None
) -> tuple[classifier_file.ClassifierConfig, Any]:
  """(configuration, probe) of a classifier of a built-in pair: `params['router']` of the pair for a `LearnedRouter`.

  Args:
    name: 'gemma' or 't5'.
    classifier: 'kl_classifier', or the name of another that lies beside it.
    dtype: of the parameters.
    data_dir: where `<name>/<classifier>.safetensors` and the models lie; None is the package's own.

  Raises:
    ParamError: no such pair.
    CheckpointError, VocabError: see `classifier_file.load`.
  """
  if name not in builtin.PAIRS:
    raise errors.ParamError(what='pair', got=name, expected=f'one of {builtin.PAIRS}')
  with _folder(data_dir) as folder:
    models = {role: folder / name / f'{role}.safetensors' for role in ('target', 'drafter')}
    return classifier_file.load(folder / name / f'{classifier}.safetensors', dtype=dtype, **models)


class Files(NamedTuple):
  """The .safetensors files of a pair and their SHA-256 by role."""

  target: pathlib.Path
  drafter: pathlib.Path
  sha256: dict[str, str]

  @classmethod
  def of(cls, name: str, models_dir: str | os.PathLike | None) -> 'Files':
    """Those of the built-in pair `name`, in `models_dir` or in the package's own data."""
    with _folder(models_dir) as folder:
      paths = {role: folder / name / f'{role}.safetensors' for role in ('target', 'drafter')}
      return cls(**paths, sha256={role: native.sha256_file(path) for role, path in paths.items()})


class Questions(NamedTuple):
  """The synthetic questions of a run.

  They are drawn from the train split of the tasks, whose test questions stay for the evaluation.
  """

  seed: int
  count: int
  domains: tuple[str, ...]

  def split(self) -> dict[str, list]:
    """Name of a split -> its examples; a question that comes twice is in one split only."""
    found = {name: [] for name in SPLITS}
    for example in itertools.islice(synthetic.stream('train', seed=self.seed, domains=self.domains), self.count):
      found[split_of(example.inputs)].append(example)
    for name, examples in found.items():
      if not examples:
        raise errors.DataError(
            what=f'questions of the split {name}', got='none', expected='at least one', fix='raise num_questions')
    return found


def split_of(inputs: str) -> str:
  """The split of `SPLITS` that a question belongs to, a function of its text."""
  digest = hashlib.blake2b(inputs.encode('utf-8', 'surrogatepass'), digest_size=4, person=b'kl-classifier').digest()
  percent = int.from_bytes(digest, 'big') * 100 >> 32
  for name, share in _PERCENT.items():
    if percent < share:
      return name
    percent -= share
  return 'train'


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
  """What the collection of one pair's points depends on; fields as of `train`."""

  files: Files
  pair: pair_lib.Pair
  questions: Questions
  kinds: tuple[str, ...]
  max_new_tokens: int
  direction: str
  batch_size: int
  stop: stopping.StopRequest
  directory: pathlib.Path
  progress: bool

  def collect(self, level, positive_rate):
    """(level in nats, split -> points), or None where `stop` asked."""
    split, found = self.questions.split(), {name: [] for name in SPLITS}
    for kind in self.kinds:
      if kind == 'backoff' and level is None:
        raise errors.ConfigError(
            what="level of 'backoff' answers", got=None, expected='a number of nats',
            fix="name another kind first, such as 'reference': it gives the level")
      answers = kl_points.Answers(
          kind=kind, seed=self.questions.seed, max_new_tokens=self.max_new_tokens,
          level=level if kind == 'backoff' else None)
      for name, examples in split.items():
        directory = self.directory / 'points' / f'{name}_{kind}'
        complete = kl_points.write(
            directory, pair=self.pair, sha256=self.files.sha256, examples=examples, answers=answers,
            batch_size=self.batch_size, stop=self.stop, show_progress=self.progress)
        if not complete:
          return None
        found[name].append(kl_points.KLPoints(directory, sha256=self.files.sha256, direction=self.direction))
      if level is None:
        divergences = found['train'][0].columns()[self.direction]
        level = max(round(float(np.quantile(divergences, 1 - positive_rate)), 4), kl_classifier.SMALLEST_DIVERGENCE)
    return level, {name: kl_points.Joined(parts) for name, parts in found.items()}


class Trained(NamedTuple):
  """A calibrated classifier, and its probabilities of the held-out points before and after calibration."""

  config: classifier_file.ClassifierConfig
  probe: Any
  raw: np.ndarray
  probabilities: np.ndarray

  @classmethod
  def of(cls, config, probe, data, max_knots) -> 'Trained':
    """Calibrates on the one split and reads the other."""
    fitted = kl_classifier.calibrated(probe, data['calibration'], level=config.level, max_knots=max_knots)
    config = dataclasses.replace(config, num_knots=len(fitted['knots']['x']))
    raw, probabilities = (kl_classifier.probabilities_of(one, data['held_out'])[0] for one in (probe, fitted))
    return cls(config, fitted, raw, probabilities)


def _train_one(
    title, shape, data, run, *, config, loop_config, learns, tensorboard, progress, stop, operative_config):
  """The probe after training, not calibrated; None where `stop` asked."""
  mean, scale = kl_classifier.moments(data['train'])
  described = classifier_file.describe(shape, target=run.files.target, drafter=run.files.drafter) | {
      'learns': learns, 'hidden_dims': list(shape.hidden_dims)}
  params, complete = language_model.train(
      kl_classifier.objective(shape, mean=mean, scale=scale, learns=learns), train_data=data['train'],
      validation_data=data['calibration'], config=config, loop_config=loop_config,
      output_dir=str(run.directory / title), model_description=described, stop=stop, tensorboard=tensorboard,
      show_progress=progress, operative_config=operative_config)
  return kl_classifier.as_probe(params, mean=mean, scale=scale) if complete else None


def _report(run, level, trained, data):
  """What is written as report.json, with the arrays beside it."""
  columns = data['held_out'].columns()
  divergences = columns[run.direction]
  labels = divergences > level
  report = {
      'pair': run.pair.name, 'level': level, 'direction': run.direction, 'sha256': run.files.sha256,
      'num_points': {name: len(points) for name, points in data.items()},
      'histogram': {name: histogram(columns[name]) for name in classifier_file.DIRECTIONS}, 'classifiers': {}}
  for title, one in trained.items():
    cost = kl_classifier.overhead(one.config, run.pair.drafter, family=run.pair.family)
    calibrated = kl_classifier.figures(one.probabilities, labels)
    report['classifiers'][title] = {
        'hidden_dims': list(one.config.hidden_dims), 'num_knots': one.config.num_knots,
        'temperature': float(one.probe['temperature']), 'overhead': cost._asdict(),
        'uncalibrated': kl_classifier.figures(one.raw, labels), 'calibrated': calibrated,
        'by_domain': {
            str(domain): kl_classifier.figures(one.probabilities[is_of_it], labels[is_of_it])
            for domain in np.unique(columns['domain']) for is_of_it in [columns['domain'] == domain]}}
    print(f'{run.pair.name} {title}: ' + ', '.join(
        f'{name} {calibrated[name]:.4f}' for name in ('base_rate', 'auc', 'ece', 'brier_skill')
        if calibrated[name] is not None), flush=True)
  with durable.replacing(run.directory / 'held_out.npz') as file:
    np.savez(file, **{name: columns[name] for name in classifier_file.DIRECTIONS}, **{
        f'{kind}_{title}': getattr(one, kind).astype(np.float32)
        for title, one in trained.items() for kind in ('raw', 'probabilities')})
  durable.replace(run.directory / 'report.json', (json.dumps(report, indent=2) + '\n').encode())
  return report


def histogram(divergences: np.ndarray) -> dict[str, Any]:
  """Shares of points by bucket of `EDGES`, the last one open, and shares of at least 2, 5 and 10 nats."""
  counts = np.histogram(divergences, bins=[*EDGES, np.inf])[0]
  return {
      'edges': list(EDGES), 'shares': (counts / len(divergences)).tolist(),
      'at_least': {f'{edge:g}': float(np.mean(divergences >= edge)) for edge in AT_LEAST},
      'mean': float(np.mean(divergences))}


def _check(pairs, classifiers, answers, positive_rate, max_knots):
  for name in pairs or [None]:
    if name not in builtin.PAIRS:
      raise errors.ConfigError(what='pair', got=name, expected=f'one of {", ".join(builtin.PAIRS)}')
  if not classifiers:
    raise errors.ConfigError(what='classifiers', got=classifiers, expected='hidden widths by name')
  for name, widths in classifiers.items():
    if not name.isidentifier() or name in ('target', 'drafter', 'heads', 'points'):
      raise errors.ConfigError(what='name of a classifier', got=name, expected='a file name such as kl_classifier')
    classifier_file.ClassifierConfig(embed_dim=1, hidden_dims=tuple(widths), level=1.0)
  for kind in answers or [None]:
    checks.choice('answers', kind, kl_points.KINDS)
  if len(set(answers)) != len(answers):
    raise errors.ConfigError(what='answers', got=list(answers), expected='each kind once')
  checks.real('positive_rate', positive_rate, low=0, high=1, low_open=True, high_open=True)
  checks.integer('max_knots', max_knots, low=1, high=calibration.MAX_KNOTS)


@contextlib.contextmanager
def _folder(data_dir) -> Iterator[pathlib.Path]:
  """The folder of the pairs' files: `data_dir`, or the package's own data."""
  with contextlib.ExitStack() as stack:
    if data_dir is None:
      data = importlib.resources.files('specjax.pairs') / 'data'
      data_dir = stack.enter_context(importlib.resources.as_file(data))
    yield pathlib.Path(data_dir)
