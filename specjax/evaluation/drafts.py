"""`drafts`: why drafts are as good as they are: what Kim et al. 2024 measure of them, on the target's own greedy answers.

    greedy answers -> drafts of every method at every place -> accepted prefixes, block efficiency, repetition, wins
                   -> laws of the heads at every place      -> entropy per head, h_max, oracle of the top k
    sizes of the networks                                   -> bytes and operations per token

Written to DIR/drafts-PAIR.json; the reports of a run in the same directory show it.
"""

import contextlib
import functools
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from specjax.core import checks
from specjax.core.errors import ConfigError
from specjax.evaluation import draft_collection
from specjax.evaluation import drafting
from specjax.evaluation import grid
from specjax.evaluation import interrupts
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import output
from specjax.evaluation import parts
from specjax.evaluation import provenance
from specjax.evaluation import runner as runner_lib
from specjax.evaluation import sweep as sweep_lib
from specjax.evaluation import task_sources
from specjax.evaluation import work
from specjax.metrics import drafts as drafts_lib

LOG = logging.getLogger('specjax.eval')

ALL = 'all'
PLAIN_HEADS = 'blockwise'
# Of the histograms of entropies, over 0 .. log V.
BINS = 24


def drafts(
    *, pair: str, task: str, methods: Sequence[str], thresholds: Mapping[str, Sequence[float | Sequence[float]]],
    num_draft_tokens: int, top_k: int, max_samples: int, max_new_tokens: int, batch_size: int, dtype: str, split: str,
    data_seed: int, output_path: str, data_dir: str | None = None, num_fewshot: int = 0, input_key: str = 'inputs',
    target_key: str = 'targets', heads: str | None = None, autoregressive_head: str | None = None,
    ngrams: Sequence[str] = (), overwrite: bool = False, load_runner=runner_lib.load_runner,
):
  """The analysis as a JSON object, which is also written to `output_path`/drafts-PAIR.json.

  Args:
    pair: a built-in pair, or TARGET::DRAFTER.
    task: its name.
    methods: drafting methods whose drafts are chains; heads among them are looked at closely.
    thresholds: by method name; a knob is at the first value of its sweep.
    num_draft_tokens: K; of heads at most their number.
    top_k: the largest k of the oracle.
    max_samples, max_new_tokens, batch_size, dtype, split, data_seed, data_dir, num_fewshot, input_key, target_key, heads,
      autoregressive_head, ngrams: as in `evaluate.evaluate`.
    output_path: directory, which may be that of a run.
    overwrite: replace an analysis that is there.
    load_runner: as in `evaluate.evaluate`.

  Raises:
    ConfigError, ParamError: before anything compiles.
  """
  config = {name: value for name, value in locals().items() if name not in ('output_path', 'overwrite', 'load_runner')}
  config['methods'], config['thresholds'] = list(methods), {name: list(values) for name, values in thresholds.items()}
  points = _points(config)
  path = pathlib.Path(output_path) / file_name(pair)
  if path.exists() and not overwrite:
    raise ConfigError(what='an analysis is there', where=str(path), fix='Add --overwrite, or another --output_path.')
  data = task_sources.DataSettings(data_dir, num_fewshot, input_key, target_key)
  loaded = task_sources.load(task, split=split, count=max_samples, seed=data_seed, data=data)
  more = {name: config[name] for name, default in parts.ARGUMENTS.items() if config[name] != default}
  runner = load_runner(pair, dtype=dtype, bonus='rule', force_length=False, detail='none', **more)
  asked = sweep_lib.ask(loaded.examples, runner)
  shape = runner.shape(asked, max_new_tokens=max_new_tokens, points=points)
  with contextlib.ExitStack() as stack:
    signals = stack.enter_context(interrupts.Interrupts())
    found = {point.method: _collected(runner, point, asked, shape, signals) for point in points}
    texts = [one.text for one in next(iter(found.values()))[0]]
    outlooks = _outlooks(runner, asked, texts, shape, signals) if any(
        'heads' in methods_lib.lookup(point.method).needs for point in points) else None
  domains = _by_domain(asked)
  result = {
      'config': config, 'prompts_sha256': loaded.sha256,
      'domains': {name: _domain(rows, found, outlooks, runner.pair_with(()).target.vocab_size, top_k) for name, rows in domains.items()},
      'work': _work(runner, points, shape, found, itemsize=jnp.dtype(dtype).itemsize), 'pair': runner.metadata(),
      'session': provenance.session(operative_config=None, compilation_cache=None)}
  path.parent.mkdir(parents=True, exist_ok=True)
  output.write_json(path, result)
  LOG.info('%s', path)
  return result


def file_name(pair: str) -> str:
  """Where the analysis of a pair is kept."""
  return f'drafts-{"".join(c if c.isalnum() or c in "-_" else "_" for c in pair)}.json'


def read(directory: str | pathlib.Path) -> list[dict]:
  """The analyses in a directory, by name.

  Raises:
    ConfigError: one does not parse.
  """
  found = []
  for path in sorted(pathlib.Path(directory).glob('drafts-*.json')):
    try:
      found.append(json.loads(path.read_bytes()))
    except ValueError:
      raise ConfigError(what=f'{path.name} does not parse', where=str(path), fix='Run `drafts` again.') from None
  return found


def _points(config):
  """The `grid.Point`s of the methods, after refusing what cannot be looked at."""
  for name, low in (('num_draft_tokens', 1), ('top_k', 1), ('max_samples', 1), ('max_new_tokens', 1), ('batch_size', 1)):
    checks.integer(name, config[name], low=low, high=checks.MAX_NEW_TOKENS, where=f'drafts.{name}')
  grid.check_not_empty('methods', config['methods'])
  grid.check_thresholds(config['thresholds'])
  found = []
  for name in dict.fromkeys(config['methods']):
    method = methods_lib.lookup(name)
    if not method.drafts or method.is_tree:
      chains = [one.name for one in methods_lib.METHODS.values() if one.group == 'drafting' and not one.is_tree]
      raise ConfigError(
          what=f'{name} {"drafts trees" if method.drafts else "drafts nothing"}', where='drafts.methods',
          expected=f'methods whose drafts are chains, such as {", ".join(chains)}')
    found.append(grid.Point(
        pair=config['pair'], task=config['task'], method=name, rule=method.rule,
        knob=grid.knob_values(method, config['thresholds'])[0], num_draft_tokens=config['num_draft_tokens'],
        verifier=method.verifier, sampling=checks.SamplingParams(temperature=0.0), seed=0, batch=config['batch_size']))
  return found


def _collected(runner, point, asked, shape, signals):
  """(the `draft_collection.Drafts` of all questions, drafter calls per round)."""
  found, calls = [], []
  for start in range(0, len(asked), point.batch):
    signals.check()
    batch = asked[start:start + point.batch]
    drafted, per_round = draft_collection.collect_drafts(runner, point, batch, shape)
    found, calls = found + drafted, [*calls, per_round]
  LOG.info('%s: %d places', point.label, sum(len(one.text) for one in found))
  return found, float(np.mean(calls))


def _outlooks(runner, asked, texts, shape, signals):
  reader, found = draft_collection.HeadReader(runner, shape), []
  for question, text in zip(asked, texts, strict=True):
    signals.check()
    found.append(reader.outlook(question, text))
  return found


def _by_domain(asked):
  """Domain -> which questions, all of them first."""
  names = sorted({question.category for question in asked})
  found = {ALL: list(range(len(asked)))}
  return found | ({name: [i for i, question in enumerate(asked) if question.category == name] for name in names}
                  if len(names) > 1 else {})


def _domain(rows, found, outlooks, vocab_size, top_k):
  """The analysis of some questions."""
  accepted = {name: [drafts_lib.agreeing(*drafted[row]) for row in rows] for name, (drafted, _) in found.items()}
  return {
      'prompts': len(rows), 'tokens': sum(len(one) for one in next(iter(accepted.values()))),
      'heads': None if outlooks is None else _heads([outlooks[row] for row in rows], vocab_size, top_k),
      'methods': {name: _method([drafted[row] for row in rows], accepted[name], accepted,
                                [found[PLAIN_HEADS][0][row] for row in rows] if PLAIN_HEADS in found else None)
                  for name, (drafted, _) in found.items()}}


def _method(drafted, accepted, others, plain_drafts):
  """Block efficiency, repetition over the rounds of that method, and wins over plain heads at all places."""
  starts = [drafts_lib.round_starts(one) for one in accepted]
  tokens = np.concatenate([one.tokens[at] for one, at in zip(drafted, starts, strict=True)])
  lengths = np.concatenate([one.lengths[at] for one, at in zip(drafted, starts, strict=True)])
  equal, neighbours = drafts_lib.repetitions(tokens, lengths)
  runs = drafts_lib.longest_runs(tokens, lengths)[lengths > 0]
  plain = others.get(PLAIN_HEADS)
  against = None
  if plain is not None and plain is not accepted:
    against = drafts_lib.wins(np.concatenate(accepted), np.concatenate(plain))._asdict()
    # How many of the wins repair a draft that broke off by saying a token twice.
    is_win = np.concatenate(accepted) > np.concatenate(plain)
    against['wins_over_repetition'] = int(np.sum(is_win & np.concatenate([
        drafts_lib.fails_by_repeating(one.tokens, one.lengths, kept) for one, kept in zip(plain_drafts, plain, strict=True)])))
  return {
      'block_efficiency': drafts_lib.block_efficiency(accepted), 'rounds': sum(map(len, starts)),
      'neighbour_rate': equal / neighbours if neighbours else None, 'mean_longest_run': float(np.mean(runs)) if len(runs) else None,
      'against_plain_heads': against}


def _heads(outlooks, vocab_size, top_k):
  """Entropy per head with its histogram, h_max, and the oracle over k."""
  entropies = np.concatenate([one.entropies[one.is_known] for one in outlooks])
  means = entropies.mean(axis=0) if len(entropies) else np.full(outlooks[0].entropies.shape[1], np.nan)
  edges = np.linspace(0.0, float(np.log(vocab_size)), BINS + 1)
  entropies = np.clip(entropies, edges[0], edges[-1])  # Rounding may leave them a little outside.
  shares = [np.histogram(entropies[:, head], edges)[0] / max(1, len(entropies)) for head in range(entropies.shape[1])]
  oracle = drafts_lib.oracle_block_efficiency([one.ranks for one in outlooks], top_k)
  return {
      'mean_entropies': means.tolist(), 'h_max': drafts_lib.last_rising_head(means),
      'entropy_edges': edges.tolist(), 'entropy_shares': [share.tolist() for share in shares],
      'oracle_block_efficiency': oracle}


def _work(runner, points, shape, found, *, itemsize):
  """Method -> context length -> `drafts_lib.Work`, the target alone among them."""
  costs, pair = runner.step_costs(shape), runner.pair_with(())
  models = {'target': pair.target, 'drafter': pair.drafter}
  works = {role: work.of_model(models[role], costs[role], itemsize=itemsize) for role in models}
  works['rescorer'] = works['drafter']
  for role, cost in costs.items():
    works.setdefault(role, drafts_lib.ModelWork(cost['weight_bytes'], cost['flops_per_token']))
  if 'layers' in costs:
    works['layers'] = work.of_model(drafting.early_layers(pair.target), costs['layers'], itemsize=itemsize)
  alone = methods_lib.lookup(methods_lib.BASELINE)
  listed = [(alone, 0, 0.0, 1.0)] + [
      (methods_lib.lookup(point.method), point.num_draft_tokens, found[point.method][1],
       drafts_lib.block_efficiency(drafts_lib.agreeing(*one) for one in found[point.method][0])) for point in points]
  result = {}
  for method, k, calls, efficiency in listed:
    passes = work.passes_of(method, works, num_draft_tokens=k, calls_per_round=calls)
    if passes is not None and efficiency:
      per_token = functools.partial(drafts_lib.work_per_token, passes, block_efficiency=efficiency)
      result[method.name] = {'block_efficiency': efficiency} | {
          str(length): per_token(length=length)._asdict() for length in work.LENGTHS}
  return result


def text(result: Mapping) -> str:
  """What the terminal is told: block efficiency by domain and method, and what the heads say."""
  lines = []
  for domain, found in result['domains'].items():
    methods = ', '.join(f'{name} {one["block_efficiency"]:.2f}' for name, one in found['methods'].items())
    lines.append(f'{domain}: {found["tokens"]:,} tokens; block efficiency: {methods}')
    for name, one in found['methods'].items():
      against = one['against_plain_heads']
      if against and against['wins'] and name.startswith(PLAIN_HEADS):
        lines.append(f'  {name} against {PLAIN_HEADS}: {against["wins"]} wins, {against["ties"]} ties, {against["losses"]} losses; '
                     f'{100 * against["wins_over_repetition"] / against["wins"]:.0f} % of the wins mend a repetition')
    if found['heads'] is not None:
      oracle = found['heads']['oracle_block_efficiency']
      entropies = ' '.join('-' if value is None else f'{value:.2f}' for value in found['heads']['mean_entropies'])
      lines.append(f'  entropy by head {entropies} nats, h_max {found["heads"]["h_max"]}; the oracle of the top {len(oracle)}: '
                   f'{oracle[-1]:.2f}')
  return '\n'.join(lines)
