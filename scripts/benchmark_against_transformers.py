"""specjax beside Hugging Face transformers: the same weights, prompts, sampling and machine, in one process.

Two pairs in float32, of random weights: a Gemma-3-style decoder of about 100M parameters and a T5 1.1 of base size. The
drafter is the target's first layers; the target's other layers are damped, just so much that the acceptance rate is
`--acceptance`. Both libraries read the same folders. The two ends stand beside them: further layers that add nothing
(every draft token is accepted) and a drafter of other weights (next to none is).

    pip install -e .[peers]
    python scripts/benchmark_against_transformers.py [--pair=gemma,t5] [--temperatures=0,1] [--output=peers.json]

Assisted generation runs with a constant number of draft tokens and no confidence threshold. Runs are interleaved; every
figure is tokens over seconds, summed over prompts and repeats, with compilation and one warm-up excluded. Greedy outputs
are compared token for token. No other heavy process may run beside it.
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import pathlib
import tempfile
import time

import benchmark_decode
import jax
import numpy as np
import torch
import transformers
from transformers.generation import candidate_generator

import specjax
from specjax.core import checks
from specjax.metrics import efficiency
from specjax.models import layouts

PROMPT_LENGTH = 32
MAX_MATCH = 2  # tokens that must agree at most in prompt lookup, the default of transformers
TOLERANCE = 0.03  # of the acceptance rate, when the damping is searched for


GENERATORS = {
    None: candidate_generator.AssistedCandidateGenerator,
    'assistant': candidate_generator.AssistedCandidateGenerator,
    'lookup': candidate_generator.PromptLookupCandidateGenerator,
    'early exit': candidate_generator.EarlyExitCandidateGenerator,
}


@dataclasses.dataclass
class Kind:
  """One of the two pairs: how transformers builds it, and where the damping goes.

  Attributes:
    build: (number of layers) -> transformers model with fresh weights.
    num_layers, num_drafter_layers: of the target and of its drafter.
    damped: (parameter name, layer) -> whether damping scales this parameter of a further layer.
    offset: the norm's weight is applied as `offset` + weight; 0 where the parameter is a matrix.
    family: of the `specjax.Pair`.
  """

  build: object
  num_layers: int
  num_drafter_layers: int
  damped: tuple[str, ...]
  offset: float
  family: str


def gemma(num_layers, *, small):
  """A Gemma-3-style decoder: 101M parameters with 11 layers."""
  config = transformers.Gemma3TextConfig(
      vocab_size=256 if small else 8192, hidden_size=96 if small else 768, intermediate_size=128 if small else 3072,
      num_hidden_layers=num_layers, num_attention_heads=6, num_key_value_heads=2, head_dim=16 if small else 128,
      layer_types=['full_attention'] * num_layers, max_position_embeddings=4096, query_pre_attn_scalar=128,
      bos_token_id=None, eos_token_id=None, pad_token_id=0)
  model = transformers.Gemma3ForCausalLM(config)
  # The head is the embedding: were the embedding a large part of the last hidden state, every token would predict itself.
  with torch.no_grad():
    model.model.embed_tokens.weight.normal_(0, 0.3 * config.hidden_size**-0.5)
    for name, weight in model.named_parameters():
      if name.endswith(('post_attention_layernorm.weight', 'post_feedforward_layernorm.weight')):
        weight.fill_(3.0)  # Norms multiply by 1 + weight.
    model.model.norm.weight.fill_(9.0)  # Logits of deviation about 3: a law with some entropy.
  return model


def t5(num_layers, *, small):
  """A T5 1.1: 248M parameters with 12 layers in each stack."""
  config = transformers.T5Config(
      vocab_size=256 if small else 32128, d_model=64 if small else 768, d_kv=16 if small else 64,
      d_ff=128 if small else 2048, num_layers=num_layers, num_decoder_layers=num_layers, num_heads=4 if small else 12,
      feed_forward_proj='gated-gelu', tie_word_embeddings=False, decoder_start_token_id=0, eos_token_id=None,
      pad_token_id=0, dropout_rate=0.0)
  model = transformers.T5ForConditionalGeneration(config)
  # A head of its own, as in the released 1.1 models, whatever this version of transformers makes of a fresh one.
  head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)
  with torch.no_grad():
    head.weight.normal_(0, 3 * config.d_model**-0.5)
    model.shared.weight.normal_(0, 1)
  model.lm_head = head
  config.scale_decoder_outputs = False
  return model


def kinds(small):
  """The pairs by name."""
  further = (4, 1) if small else None
  return {
      'gemma': Kind(
          functools.partial(gemma, small=small), *(further or (11, 2)),
          ('post_attention_layernorm.weight', 'post_feedforward_layernorm.weight'), 1.0, 'decoder-only'),
      't5': Kind(
          functools.partial(t5, small=small), *(further or (12, 2)), ('.o.weight', '.wo.weight'), 0.0,
          'encoder-decoder'),
  }


def layer_of(name):
  """The number of the layer that a parameter belongs to, or -1."""
  numbers = [part for part in name.split('.') if part.isdigit()]
  return int(numbers[0]) if numbers else -1


class Family:
  """Writes a target of any damping, its drafter and a drafter of other weights, for both libraries to read."""

  def __init__(self, kind, folder):
    self.kind, self.folder = kind, pathlib.Path(folder)
    torch.manual_seed(0)
    self.target = kind.build(kind.num_layers).eval()
    self.fresh = {name: value.clone() for name, value in self.target.state_dict().items()}
    drafter = kind.build(kind.num_drafter_layers).eval()
    drafter.load_state_dict({name: self.fresh[name] for name in drafter.state_dict()})
    drafter.save_pretrained(self.folder / 'drafter')
    torch.manual_seed(1)
    kind.build(kind.num_drafter_layers).eval().save_pretrained(self.folder / 'stranger')

  def save(self, damping):
    """The folder of the target whose further layers are scaled by `damping`."""
    state = {}
    for name, value in self.fresh.items():
      further = layer_of(name) >= self.kind.num_drafter_layers and name.endswith(self.kind.damped)
      state[name] = (value + self.kind.offset) * damping - self.kind.offset if further else value
    self.target.load_state_dict(state)
    path = self.folder / 'target'
    self.target.save_pretrained(path)
    return path


def load_pair(kind, target, drafter):
  """The `specjax.Pair` of two folders."""
  (target, target_params), (drafter, drafter_params) = specjax.load(target), specjax.load(drafter)
  params = {'target': target_params, 'drafter': drafter_params}
  return specjax.Pair(target=target, drafter=drafter, params=layouts.for_backend(params), family=kind.family)


def run_ours(pair, prompts, *, method, temperature, max_new_tokens, batch_size):
  """`DecodeResult` of all prompts."""
  return specjax.generate(
      pair, prompts, method=method, sampling=checks.SamplingParams(temperature=float(temperature)),
      max_new_tokens=max_new_tokens, seed=0, batch_size=batch_size, eos_ids=())


def acceptance_rate(stats):
  """Accepted / evaluated draft tokens."""
  return float(np.sum(stats.accepted) / max(np.sum(stats.evaluated), 1))


def find_damping(family, prompts, *, wanted, temperature, num_draft_tokens, max_new_tokens):
  """(damping, acceptance rate) next to `wanted`, by bisection over the logarithm of the damping."""
  low, high, found = math.log(1e-3), math.log(4.0), None
  for _ in range(12):
    middle = (low + high) / 2
    pair = load_pair(family.kind, family.save(math.exp(middle)), family.folder / 'drafter')
    result = run_ours(
        pair, prompts, method=specjax.speculative(num_draft_tokens=num_draft_tokens), temperature=temperature,
        max_new_tokens=max_new_tokens, batch_size=1)
    rate = acceptance_rate(result.stats)
    if found is None or abs(rate - wanted) < abs(found[1] - wanted):
      found = math.exp(middle), rate
    if abs(rate - wanted) < TOLERANCE:
      break
    low, high = (middle, high) if rate > wanted else (low, middle)
  return found


class Rounds:
  """Counts the rounds of a way of assisted generation: what was drafted, evaluated and accepted."""

  def __init__(self, assistance):
    self.counts, self.generator = collections.Counter(), GENERATORS[assistance]

  def __enter__(self):
    generator = self.generator
    self.originals = generator.get_candidates, generator.update_candidate_strategy
    get, update = self.originals

    def get_candidates(this, input_ids, *args, **kwargs):
      found = get(this, input_ids, *args, **kwargs)
      self.drafted = found[0].shape[1] - input_ids.shape[1]
      return found

    def update_candidate_strategy(this, input_ids, scores, num_matches):
      self.counts.update(
          target_calls=1, drafted=self.drafted, accepted=int(num_matches),
          evaluated=min(int(num_matches) + 1, self.drafted))
      return update(this, input_ids, scores, num_matches)

    generator.get_candidates, generator.update_candidate_strategy = get_candidates, update_candidate_strategy
    return self

  def __exit__(self, *error):
    self.generator.get_candidates, self.generator.update_candidate_strategy = self.originals


def run_theirs(models, prompts, *, temperature, max_new_tokens, batch_size, assistance=None, num_draft_tokens=None,
               num_layers=None):
  """(list of generated tokens, counts of the rounds) by transformers; `assistance` as in `GENERATORS`, None without."""
  target, drafter = models
  options = dict(max_new_tokens=max_new_tokens, do_sample=temperature > 0)
  if temperature > 0:
    options |= dict(temperature=float(temperature), top_k=0, top_p=1.0)
  if assistance == 'lookup':
    options |= dict(prompt_lookup_num_tokens=num_draft_tokens, max_matching_ngram_size=MAX_MATCH)
  elif assistance is not None:
    assistant = drafter if assistance == 'assistant' else target
    assistant.generation_config.num_assistant_tokens = num_draft_tokens
    assistant.generation_config.num_assistant_tokens_schedule = 'constant'
    assistant.generation_config.assistant_confidence_threshold = 0.0
    options |= dict(assistant_model=drafter) if assistance == 'assistant' else dict(assistant_early_exit=num_layers)
  found = []
  with torch.inference_mode(), Rounds(assistance) as rounds:
    for start in range(0, len(prompts), batch_size):
      tokens = torch.tensor(prompts[start:start + batch_size])
      torch.manual_seed(start)
      if target.config.is_encoder_decoder:
        # Without it transformers 5.23 feeds the drafter the whole answer again behind its cache in every round.
        options['decoder_attention_mask'] = torch.ones_like(tokens[:, :1])
      output = target.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)
      skipped = 1 if target.config.is_encoder_decoder else tokens.shape[1]
      found += [row[skipped:].tolist() for row in output]
  return found, rounds.counts


class Clock:
  """Seconds inside the forward passes of some models, by name."""

  def __init__(self, models):
    self.seconds, self.handles, self.started = collections.Counter(), [], {}
    for name, model in models.items():
      self.handles += [
          model.register_forward_pre_hook(functools.partial(self._enter, name)),
          model.register_forward_hook(functools.partial(self._leave, name))]

  def _enter(self, name, *_):
    self.started[name] = time.perf_counter()

  def _leave(self, name, *_):
    self.seconds[name] += time.perf_counter() - self.started[name]

  def close(self):
    """Removes the hooks."""
    for handle in self.handles:
      handle.remove()


def interleaved(functions, repeats):
  """name -> (seconds of each repeat, last result), in ABBA order behind one warm-up."""
  seconds, results = collections.defaultdict(list), {name: function() for name, function in functions.items()}
  for repeat in range(repeats):
    for name in list(functions)[::1 if repeat % 2 == 0 else -1]:
      start = time.perf_counter()
      results[name] = functions[name]()
      seconds[name].append(time.perf_counter() - start)
  return seconds, results


def bytes_per_token(pair):
  """What one step of the target must read at batch 1: all weights but those of the encoder and of unread embeddings."""
  named = jax.tree_util.tree_leaves_with_path(pair.params['target'])
  total = 0
  for path, leaf in named:
    keys = [key.key for key in path]
    unread = keys[0] == 'encoder' or keys[0] == 'token_embedder' and not pair.target.config.tied_head
    total += 0 if unread else leaf.nbytes
  return total


def seconds_inside(pair, prompts, args, result, seconds, *, temperature):
  """Where the time of speculative decoding went: passes of each model as they take alone, one wide, and the rest.

  The target's pass is K + 1 wide; it is timed by a decoder that drafts K tokens and keeps none.
  """
  alone = dataclasses.replace(
      pair, target=pair.drafter, params=dict(pair.params, target=pair.params['drafter']))
  common = dict(temperature=temperature, max_new_tokens=args.max_new_tokens, batch_size=1)

  def per_call(pair, method):
    run_ours(pair, prompts, method=method, **common)
    start = time.perf_counter()
    found = run_ours(pair, prompts, method=method, **common)
    return (time.perf_counter() - start) / np.sum(found.stats.target_calls)

  counts = efficiency.total_counts(result.stats)
  target = counts.target_calls * per_call(pair, specjax.autoregressive(width=args.num_draft_tokens + 1))
  drafter = int(np.sum(result.stats.drafter_calls)) * per_call(alone, specjax.autoregressive())
  return dict(target=target, drafter=drafter, rest=seconds - target - drafter)


def measure(kind, case, folders, prompts, args, *, temperature, batch_size, bandwidth):
  """Rows of one table: every way of decoding, in both libraries, on one pair of folders."""
  pair = load_pair(kind, *folders)
  loader = transformers.AutoModelForSeq2SeqLM if kind.family == 'encoder-decoder' else transformers.AutoModelForCausalLM
  theirs = [loader.from_pretrained(folder, dtype=torch.float32).eval() for folder in folders]
  for model in theirs:
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
  common = dict(temperature=temperature, max_new_tokens=args.max_new_tokens, batch_size=batch_size)
  speculative = specjax.speculative(num_draft_tokens=args.num_draft_tokens)
  functions = {
      'specjax autoregressive': lambda: run_ours(pair, prompts, method=specjax.autoregressive(), **common),
      'transformers generate': lambda: run_theirs(theirs, prompts, **common),
      'specjax speculative': lambda: run_ours(pair, prompts, method=speculative, **common),
  }
  if batch_size == 1:  # Assisted generation takes one row.
    assisted = functools.partial(run_theirs, theirs, prompts, num_draft_tokens=args.num_draft_tokens, **common)
    functions['transformers assisted'] = lambda: assisted(assistance='assistant')
    if case == 'matched':
      lookup = specjax.prompt_lookup(num_draft_tokens=args.num_draft_tokens, max_match=MAX_MATCH, prefers='first')
      functions['specjax lookup'] = lambda: run_ours(pair, prompts, method=lookup, **common)
      functions['transformers lookup'] = lambda: assisted(assistance='lookup')
    if case == 'matched' and kind.family == 'decoder-only':  # transformers cannot leave a T5 early.
      layers = kind.num_drafter_layers
      early_exit = specjax.early_exit(num_layers=layers, num_draft_tokens=args.num_draft_tokens)
      functions['specjax early exit'] = lambda: run_ours(pair, prompts, method=early_exit, **common)
      functions['transformers early exit'] = lambda: assisted(assistance='early exit', num_layers=layers)
  seconds, results = interleaved(functions, args.repeats)
  rows, limit = [], bandwidth / bytes_per_token(pair) * batch_size
  for name, result in results.items():
    tokens = len(prompts) * args.max_new_tokens * args.repeats
    row = dict(case=case, temperature=temperature, batch_size=batch_size, system=name,
               tokens_per_second=tokens / sum(seconds[name]), seconds=seconds[name])
    if 'autoregressive' in name or 'generate' in name:
      row['percent_of_limit'] = 100 * row['tokens_per_second'] / limit
    if name in ('specjax speculative', 'specjax lookup', 'specjax early exit'):
      counts = efficiency.total_counts(result.stats)
      row |= dict(acceptance_rate=counts.accepted / max(counts.evaluated, 1), target_calls=counts.target_calls,
                  acceptance_length=1 + counts.accepted / counts.steps)
    if name in ('transformers assisted', 'transformers lookup', 'transformers early exit'):
      counts = result[1]
      row |= dict(acceptance_rate=counts['accepted'] / max(counts['evaluated'], 1), target_calls=counts['target_calls'],
                  acceptance_length=1 + counts['accepted'] / counts['target_calls'])
    rows.append(row)
  if temperature == 0:
    outputs = {name: [list(map(int, row)) for row in (result[0] if 'transformers' in name else result.tokens)]
               for name, result in results.items()}
    reference = outputs['transformers generate']
    for row in rows:
      row['equal_outputs'] = sum(a == b for a, b in zip(outputs[row['system']], reference, strict=True))
      row['outputs'] = len(reference)
  if batch_size == 1:
    ours = next(row for row in rows if row['system'] == 'specjax speculative')
    ours['seconds_inside'] = seconds_inside(
        pair, prompts, args, results['specjax speculative'], min(seconds['specjax speculative']), temperature=temperature)
    clock = Clock({'target': theirs[0], 'drafter': theirs[1]})
    start = time.perf_counter()
    functions['transformers assisted']()
    total = time.perf_counter() - start
    clock.close()
    inside = dict(clock.seconds, rest=total - sum(clock.seconds.values()))
    next(row for row in rows if row['system'] == 'transformers assisted')['seconds_inside'] = inside
  return rows


def table(rows):
  """The rows as text."""
  lines = [f'{"pair":6} {"case":16} {"T":>3} {"B":>3} {"system":24} {"tok/s":>8} {"% limit":>8} {"accept":>7} '
           f'{"AL":>5} {"calls":>6} {"equal":>7}']
  for row in rows:
    show = lambda name, spec: format(row[name], spec) if name in row else '-'
    equal = f'{row["equal_outputs"]}/{row["outputs"]}' if 'equal_outputs' in row else '-'
    lines.append(
        f'{row["pair"]:6} {row["case"]:16} {row["temperature"]:3g} {row["batch_size"]:3d} {row["system"]:24} '
        f'{row["tokens_per_second"]:8.1f} {show("percent_of_limit", ".0f"):>8} {show("acceptance_rate", ".3f"):>7} '
        f'{show("acceptance_length", ".2f"):>5} {show("target_calls", "d"):>6} {equal:>7}')
  return '\n'.join(lines)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--pair', default='gemma,t5')
  parser.add_argument('--temperatures', default='0,1')
  parser.add_argument('--batch_sizes', default='1,4', help='assisted generation runs at 1 only')
  parser.add_argument('--cases', default='matched,all accepted,none accepted')
  parser.add_argument('--acceptance', type=float, default=0.7)
  parser.add_argument('--num_draft_tokens', type=int, default=5)
  parser.add_argument('--num_prompts', type=int, default=4)
  parser.add_argument('--max_new_tokens', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--threads', type=int, help='of PyTorch; default: its own choice')
  parser.add_argument('--small', action='store_true', help='toy sizes, to try the script')
  parser.add_argument('--output', type=pathlib.Path)
  args = parser.parse_args()
  transformers.utils.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  if args.threads:
    torch.set_num_threads(args.threads)
  bandwidth = benchmark_decode.bandwidth(16 if args.small else 512)
  print(f'transformers {transformers.__version__}, torch {torch.__version__}, jax {jax.__version__}, '
        f'{torch.get_num_threads()} threads; bandwidth {bandwidth / 1e9:.1f} GB/s', flush=True)
  rows = []
  for name in args.pair.split(','):
    kind = kinds(args.small)[name]
    for temperature in map(float, args.temperatures.split(',')):
      with tempfile.TemporaryDirectory() as folder:
        rows += measure_kind(name, kind, folder, args, temperature, bandwidth)
      if args.output:
        args.output.write_text(json.dumps(dict(bandwidth=bandwidth, rows=rows), indent=1) + '\n')
  print(table(rows))


def measure_kind(name, kind, folder, args, temperature, bandwidth):
  """The rows of one pair at one temperature."""
  family, rows = Family(kind, folder), []
  vocab_size = family.target.config.vocab_size
  rng = np.random.default_rng(0)
  prompts = rng.integers(1, vocab_size, (args.num_prompts, PROMPT_LENGTH)).tolist()
  for case in args.cases.split(','):
    drafter = 'stranger' if case == 'none accepted' else 'drafter'
    damping = 0.0 if case == 'all accepted' else 1.0
    if case == 'matched':
      damping, rate = find_damping(
          family, prompts, wanted=args.acceptance, temperature=temperature, num_draft_tokens=args.num_draft_tokens,
          max_new_tokens=args.max_new_tokens)
      print(f'{name} T={temperature:g}: damping {damping:.4g} gives acceptance {rate:.3f}', flush=True)
    folders = family.save(damping), family.folder / drafter
    batch_sizes = map(int, args.batch_sizes.split(',')) if case == 'matched' else [1]
    for batch_size in batch_sizes:
      found = measure(kind, case, folders, prompts, args, temperature=temperature, batch_size=batch_size,
                      bandwidth=bandwidth)
      rows += [dict(pair=name, damping=damping, **row) for row in found]
      print(table(rows[-len(found):]), flush=True)
      for row in found:
        if 'seconds_inside' in row:
          parts = ', '.join(f'{name} {value:.2f} s' for name, value in row['seconds_inside'].items())
          print(f'  {row["system"]}: {parts}', flush=True)
  return rows


if __name__ == '__main__':
  main()
