"""`certify`: the exactness certificate of a method on a pair, written to a file.

Two parts (`specjax.testing.certificate`): the joint law on toys with the method's structure, exactly, and the joint law of
the first tokens on the pair itself, by a test of samples. A certificate says which law: that of a lossy method is its own.
"""

import logging
import pathlib

from specjax.core import checks
from specjax.core.errors import ConfigError
from specjax.evaluation import drafting
from specjax.evaluation import grid
from specjax.evaluation import methods as methods_lib
from specjax.evaluation import output
from specjax.evaluation import provenance
from specjax.evaluation import task_sources
from specjax.pairs import builtin
from specjax.pairs import loaded
from specjax.testing import certificate

LOG = logging.getLogger('specjax.eval')

CERTIFICATE = 'certificate.json'
# More draft tokens than this, or levels of a tree, make the toys too large to enumerate; the loop does not know the difference.
MOST_ENUMERATED = 3
MOST_LEVELS = 1


def certify(
    *, method: str, pair: str, task: str, threshold: float | tuple | None, num_draft_tokens: int, bonus: str,
    temperature: float, top_p: float, top_k: int, min_p: float, num_prompts: int, num_samples: int, num_tokens: int,
    seed: int, batch_size: int, split: str, data_seed: int, output_path: str, overwrite: bool = False,
):
  """The certificate as a JSON object, which is also written to `output_path`/certificate.json.

  Args:
    method: name of a method.
    pair: a built-in pair, or TARGET::DRAFTER, two checkpoints.
    task: its name.
    threshold: value of the method's knob, or a tuple for several; None takes the first of its own sweep.
    num_draft_tokens: K on the pair; the toys have at most 3, and trees of one level.
    bonus: 'rule' or 'target'.
    temperature, top_p, top_k, min_p: sampling parameters.
    num_prompts, num_samples: prompts, and samples of each.
    num_tokens: length of the joint law that is tested, tokens; K + 2 span two rounds.
    seed: of the samples.
    batch_size: rows decoded together.
    split, data_seed: of the task.
    output_path: directory.
    overwrite: replace a certificate that is there.

  Raises:
    ConfigError, ParamError: before anything compiles.
  """
  config = {name: value for name, value in locals().items() if name not in ('output_path', 'overwrite')}
  output.check_writable(output_path, where='certify.output_path')
  path = pathlib.Path(output_path) / CERTIFICATE
  if path.exists() and not overwrite:
    raise ConfigError(what='a certificate is there', where=str(path), fix='Add --overwrite, or another --output_path.')
  for name, low in (('num_prompts', 1), ('num_samples', 100), ('num_tokens', 1), ('batch_size', 1), ('num_draft_tokens', 1)):
    checks.integer(name, config[name], low=low, high=1 << 20, where=f'certify.{name}')
  chosen = methods_lib.lookup(method)
  knob = dict(grid.knob_values(chosen, [] if threshold is None else [threshold])[0])
  sampling = grid.samplings(temperatures=[temperature], top_p=[top_p], top_k=top_k, min_p=min_p)[0]
  if chosen.greedy_only and sampling.temperature > 0:
    raise ConfigError(what=f'{method} at temperature {temperature:g}', where='temperature', expected='0: it is greedy only')
  if chosen.execution == 'alone' and chosen.model == 'drafter':
    raise ConfigError(what=method, where='certify.method', expected='a method of a pair', fix='Certify autoregressive.')
  if chosen.needs:
    raise ConfigError(what=f'{method}: the toys have no {drafting.PARTS[chosen.needs[0]].title}', where='certify.method',
                      expected='a method of two models', fix='tests/exactness proves drafters with parts of their own.')
  build = lambda k: chosen.build(knob, methods_lib.Setting(k, bonus, 'none'))
  model_pair = loaded.load_named(pair) if loaded.is_named(pair) else builtin.load_pair(pair)
  examples = task_sources.load(task, split=split, count=num_prompts, seed=data_seed).examples
  enumerated = certificate.enumerate_structure(
      build(min(num_draft_tokens, MOST_LEVELS if chosen.is_tree else MOST_ENUMERATED)), family=model_pair.family, sampling=sampling)
  LOG.info('enumerated: %d configurations, largest total variation %.1e', *enumerated[:2])
  sampled = certificate.sample_pair(
      build(num_draft_tokens), model_pair, [example.inputs for example in examples], sampling=sampling, num_tokens=num_tokens,
      num_samples=num_samples, seed=seed, batch_size=batch_size)
  result = {
      'config': config, 'knob': knob, 'law': chosen.summary, 'lossless': chosen.lossless,
      'enumeration': {**enumerated._asdict(), 'tolerance': certificate.TOLERANCE, 'holds': enumerated.holds},
      'samples': None if sampled is None else {**sampled._asdict(), 'holds': sampled.holds},
      'holds': enumerated.holds and (sampled is None or sampled.holds),
      'session': provenance.session(operative_config=None, compilation_cache=None)}
  path.parent.mkdir(parents=True, exist_ok=True)
  output.write_json(path, result)
  LOG.info('%s', path)
  return result


def text(result) -> str:
  """What a certificate says, for the terminal."""
  exact, sampled = result['enumeration'], result['samples']
  knob = ''.join(f' {name}={value:g}' for name, value in result['knob'].items())
  lines = [
      f'{result["config"]["method"]}{knob} on {result["config"]["pair"]}: {"holds" if result["holds"] else "FAILS"}',
      f'its law: {result["law"]}',
      f'toys of its structure: {exact["configurations"]} configurations, largest total variation '
      f'{exact["largest_variation"]:.1e} (at most {exact["tolerance"]:.0e})']
  if not exact['is_independent']:
    lines.append('the rule has no oracle: its own code was acted out, so only the loop around it is certified')
  if sampled is None:
    return '\n'.join([*lines, 'the pair: not sampled, the law is no product of laws of single tokens'])
  seen = sampled['seen_variation']
  lines.append(
      f'the pair: {sampled["num_samples"]} samples of {sampled["num_prompts"]} prompts, {sampled["num_tokens"]} tokens, '
      f'{sampled["cells"]} cells; smallest p {sampled["smallest_p"]:.2g} (level {sampled["level"]:.1e})'
      + (f'; a total variation of {seen:g} would be seen' if seen else ''))
  return '\n'.join(lines)
