"""What a compiled loop does on every iteration, read off its optimised HLO text."""

import re

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) .*\{$')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)='
                     r'(\{[^}]*\}|%?[\w.\-]+)')
_BODY = re.compile(r'\bwhile\(.*\bbody=%?([\w.\-]+)')
_COPY = re.compile(r'= \w+\[([\d,]*)\]\S* copy\(')


def computations(text):
  """dict name -> list of instruction lines, of the computations of an HLO module."""
  found, current = {}, None
  for line in text.splitlines():
    start = _COMPUTATION.match(line)
    if start:
      current = found.setdefault(start.group(1), [])
    elif line.startswith('}'):
      current = None
    elif current is not None:
      current.append(line.strip())
  return found


def loop_lines(text):
  """The instructions inside the module's while loops, called computations included."""
  found = computations(text)
  pending = [body for lines in found.values() for line in lines for body in _BODY.findall(line)]
  reached = set()
  while pending:
    name = pending.pop()
    if name in reached or name not in found:
      continue
    reached.add(name)
    for line in found[name]:
      for called in _CALLED.findall(line):
        pending += [one.strip(' %') for one in called.strip('{}').split(',')]
  return [line for name in sorted(reached) for line in found[name]]


def copies_inside_loops(text, shapes):
  """The copy instructions inside loops whose result has one of `shapes`."""
  wanted = {','.join(map(str, shape)) for shape in shapes}
  return [line for line in loop_lines(text) if any(shape in wanted for shape in _COPY.findall(line))]


def host_callbacks(text):
  """The instructions that call back to the host."""
  return [line.strip() for line in text.splitlines()
          if 'custom-call' in line and 'callback' in line or re.search(r'\b(outfeed|infeed|send|recv)\(', line)]
