"""Small tokenizers that tests make: SentencePiece models from a few sentences, and tokenizer.json from their pieces."""

import functools
import io

import sentencepiece
import tokenizers

TEXTS = (
    'the cat sat on the mat', 'a dog and a cat ran home', 'what is the answer to life', 'knock knock who is there',
    'write a hello world program', 'only reply like a pirate', 'der Hund und die Katze', 'tomorrow and tomorrow')


@functools.cache
def sentencepiece_model(*, texts=TEXTS, vocab_size=340, symbols=(), add_dummy_prefix=True, bos_id=2, unk_id=3):
  """A serialised model with pad 0, eos 1, and bytes for what it has never seen."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts), model_writer=model, model_type='unigram', vocab_size=vocab_size, byte_fallback=True,
      pad_id=0, eos_id=1, bos_id=bos_id, unk_id=unk_id, user_defined_symbols=list(symbols), hard_vocab_limit=False,
      add_dummy_prefix=add_dummy_prefix, normalization_rule_name='identity', remove_extra_whitespaces=False,
      character_coverage=1.0, minloglevel=2)
  return model.getvalue()


def gemma_model():
  """A model with the markers of an instruction-tuned Gemma."""
  return sentencepiece_model(
      vocab_size=360, symbols=('<start_of_turn>', '<end_of_turn>', '\n'), add_dummy_prefix=False)


def as_json(model, *, special=('<pad>', '</s>', '<s>', '<unk>')):
  """The content of a tokenizer.json with the pieces, scores and behaviour of a SentencePiece model."""
  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  pieces = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.vocab_size())]
  made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=True))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme='always', split=False)
  made.decoder = tokenizers.decoders.Sequence([
      tokenizers.decoders.Replace('▁', ' '), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(' ', 1, 0)])
  made.add_special_tokens([name for name in special if made.token_to_id(name) is not None])
  return made.to_str().encode()
