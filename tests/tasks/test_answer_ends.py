"""Token sequences at which answers end: whenever one is written the text holds the end, whatever stands around it."""

import pytest

from specjax.tasks import answer_ends
from specjax.tasks import tokenizers
from specjax.tasks import vocabulary
import tiny_tokenizers

ENDS = [('\n',), ('\nQuestion:',), ('[DONE]',), ('\n', '[DONE]')]


def _vocabularies():
  return {
      'gemma': tokenizers.from_sentencepiece(tiny_tokenizers.gemma_model()),
      'json': tokenizers.JsonTokenizer.from_bytes(tiny_tokenizers.as_json(tiny_tokenizers.sentencepiece_model())),
      'built-in': vocabulary.load_builtin_tokenizer()}


@pytest.mark.parametrize('ends', ENDS)
@pytest.mark.parametrize('name', ['gemma', 'json', 'built-in'])
def test_every_sequence_writes_an_end_and_usual_endings_hold_one(name, ends):
  tokenizer = _vocabularies()[name]
  found = answer_ends.sequences(tokenizer, ends)
  assert 0 < len(found) <= answer_ends.MOST and answer_ends.longest(found) == max(map(len, found))
  for sequence in found:
    before, behind = tokenizer.encode('the cat'), tokenizer.encode(' a dog')
    text = tokenizer.decode([*before, *sequence, *behind])
    assert any(end in text for end in ends), (sequence, text)
  for end in ends:
    for answer in ('the cat', 'the cat.', '42'):
      tokens = list(tokenizer.encode(f'{answer}{end} and more'))
      assert any(tuple(tokens[place:place + len(sequence)]) == sequence
                 for sequence in found for place in range(len(tokens))), (answer, end)


def test_without_ends_and_where_a_vocabulary_cannot_write_them_nothing_stops():
  class Wordless:
    def encode(self, text):
      return [3] * len(text.split())

    def decode(self, tokens):
      return ' '.join('w' for _ in tokens)

  assert answer_ends.sequences(vocabulary.load_builtin_tokenizer(), ()) == () and answer_ends.longest(()) == 0
  assert answer_ends.sequences(Wordless(), ('\n',)) == ()
