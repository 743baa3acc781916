"""The closed form of typical acceptance in plain numpy: all drafted trees, all paths of each, and one token behind the chosen one.

It shares no code with `ops/typical.py`: nothing is done node by node, paths are listed and compared.
"""

import itertools

import numpy as np

from specjax.core import types
from specjax.testing import oracles


def joint_law(
    laws: oracles.Laws, parents: tuple[int, ...], *, children: str, epsilon: float, delta: float, max_new_tokens: int,
    eos_ids: tuple[int, ...] = ()) -> dict[tuple[tuple[int, ...], types.Status], float]:
  """(tokens, Status) -> probability of a text made in rounds of typical acceptance.

  Args:
    laws: of the request; they are asked behind as many tokens as a limit and a whole path together have.
    parents: of nodes 1..N of the tree, as of `trees.TreeShape`.
    children: 'replacement', 'distinct' or 'top', as of `drafters.ModelTreeDrafter`.
    epsilon, delta: the knobs.
    max_new_tokens, eos_ids: what ends the text.
  """
  paths = [_path(node, parents) for node in range(len(parents) + 1)]
  finished, running = {}, {(): 1.0}
  while running:
    prefix = min(running, key=len)
    weight = running.pop(prefix)
    for tokens, mass in _trees(laws, prefix, paths, parents, children):
      kept = _longest_typical(laws, prefix, [tuple(tokens[node - 1] for node in path) for path in paths], epsilon, delta)
      law = laws.target(prefix + kept)
      for last in np.flatnonzero(law):
        _end(prefix, (*kept, int(last)), weight * mass * law[last], finished, running, max_new_tokens, eos_ids)
  return finished


def _path(node, parents):
  """The nodes from the first level down to `node`."""
  found = []
  while node:
    found.append(node)
    node = parents[node - 1]
  return tuple(reversed(found))


def _trees(laws, prefix, paths, parents, children):
  """(tokens of nodes 1..N, None where nothing was drafted; probability) of every tree that may be drafted."""
  elders = [[other for other in range(node) if parents[other] == parents[node]] for node in range(len(parents))]
  vocab_size = len(laws.target(prefix))
  if children == 'top':
    found = [()]
    for node, others in enumerate(elders):
      above = tuple(found[0][i - 1] for i in paths[node + 1][:-1])
      law = None if None in above else laws.drafter_plain(prefix + above)
      order = [] if law is None else [token for token in np.lexsort((np.arange(vocab_size), -law)) if law[token] > 0]
      found = [(*found[0], int(order[len(others)]) if len(others) < len(order) else None)]
    return [(found[0], 1.0)]
  found = []
  for tokens in itertools.product([*range(vocab_size), None], repeat=len(parents)):
    mass = 1.0
    for node, token in enumerate(tokens):
      mass *= _drawn(laws, prefix, tokens, node, token, [tokens[i] for i in elders[node]],
                     [tokens[i - 1] for i in paths[node + 1][:-1]], children)
      if not mass:
        break
    if mass:
      found.append((tokens, mass))
  return found


def _drawn(laws, prefix, tokens, node, token, taken, above, children):
  """The probability that a node holds `token` (None: nothing), given the nodes before it."""
  del tokens, node
  if None in above:
    return float(token is None)
  law = laws.drafter(prefix + tuple(above)).copy()
  if children == 'distinct':
    law[[other for other in taken if other is not None]] = 0
  total = law.sum()
  if total == 0 and children == 'distinct':  # The next best, for certain.
    law = laws.drafter_plain(prefix + tuple(above)).copy()
    law[[other for other in taken if other is not None]] = 0
    law = (np.arange(len(law)) == np.argmax(law)) * (law.max() > 0)
    total = law.sum()
  if total == 0:
    return float(token is None)
  return 0.0 if token is None else law[token] / total


def _longest_typical(laws, prefix, paths, epsilon, delta):
  """The tokens of the longest path of typical ones, of equally long ones the most probable."""
  best = (0, 0.0, ())
  for path in paths:
    score = 0.0
    for place, token in enumerate(path):
      law = None if token is None else laws.target(prefix + path[:place])
      if law is None or not law[token] > min(epsilon, delta * np.exp(np.sum(law[law > 0] * np.log(law[law > 0])))):
        break
      score += np.log(law[token])
    else:
      best = max(best, (len(path), score, path), key=lambda found: found[:2])
  return best[2]


def _end(prefix, block, weight, finished, running, max_new_tokens, eos_ids):
  """A round that emits `block`: cut where the text ends."""
  for size in range(1, len(block) + 1):
    tokens = prefix + block[:size]
    status = oracles.status_after(tokens, max_new_tokens=max_new_tokens, eos_ids=eos_ids)
    if status != types.Status.RUNNING:
      finished[tokens, status] = finished.get((tokens, status), 0.0) + weight
      return
  running[prefix + block] = running.get(prefix + block, 0.0) + weight
