"""What the progress line says of some rows."""

from specjax.evaluation import progress


def _row(num_draft_tokens, *, steps, emitted, accepted):
  positions = [steps] * num_draft_tokens
  return {'num_draft_tokens': num_draft_tokens, 'steps': steps, 'emitted': emitted, 'target_calls': steps, 'draft_calls': 0,
          'proposed': steps * num_draft_tokens, 'evaluated': steps * num_draft_tokens, 'accepted': accepted,
          'drafted_by_position': positions, 'evaluated_by_position': positions, 'accepted_by_position': positions,
          'choices': [{'new_tokens': [emitted], 'wall_time': [0.5]}]}


def test_acceptance_is_that_of_the_rows_that_draft():
  alone, drafted = _row(0, steps=30, emitted=30, accepted=0), _row(2, steps=10, emitted=30, accepted=20)
  assert progress._figures([alone, drafted]) == '60 tok/s · AL 3.00 · accepted 100 %'
  assert progress._figures([alone]) == '60 tok/s' and progress._figures([]) == '- tok/s'
