"""Translation: WMT, IWSLT, FLORES and Tatoeba, scored by BLEU and chrF."""

from specjax.tasks.task_records import Fields, Files, TaskRecord, text_of

LANGUAGES = {'en': 'English', 'de': 'German', 'fr': 'French', 'ro': 'Romanian', 'es': 'Spanish'}
_FLORES = {'en': 'eng_Latn', 'de': 'deu_Latn', 'fr': 'fra_Latn', 'ro': 'ron_Latn', 'es': 'spa_Latn'}


def _parse(source, target):
  def parse(raw):
    pair = raw.get('translation', raw)  # As published on the Hub, both sides lie one level deeper.
    return Fields(inputs=text_of(pair[source]).strip(), targets=text_of(pair[target]).strip(),
                  id=str(raw['id']) if 'id' in raw else None)
  return parse


def _record(name, source, target, *, summary, licence, tfds_name=None, files=None):
  names = LANGUAGES[source], LANGUAGES[target]
  splits = {split: split for split in ('train', 'validation', 'test')} if tfds_name else {}
  return TaskRecord(
      name=name, family='translation', summary=summary, parse=_parse(source, target), licence=licence, metric='translation',
      # T5 was trained with this very prefix; few-shot prompts are those of base decoders.
      template=f'translate {names[0]} to {names[1]}: {{inputs}}',
      shot=f'{names[0]}: {{inputs}}\n{names[1]}: {{targets}}', answer_ends=('\n',), tfds_name=tfds_name, tfds_splits=splits,
      files=files or {})


def _parallel(source, source_path, target, target_path):
  return (Files((source_path, target_path), columns=(source, target)),)


def _flores(target):
  layout = lambda split: _parallel('en', f'flores200/eng_Latn.{split}', target, f'flores200/{_FLORES[target]}.{split}')
  return _record(f'flores_en_{target}', 'en', target, summary=f'FLORES-200 English to {LANGUAGES[target]}',
                 licence='CC BY-SA 4.0; FLORES-200', files={'validation': layout('dev'), 'test': layout('devtest')})


_IWSLT = 'CC BY-NC-ND 4.0; IWSLT 2017, TED talks'
_SAMPLE = {
    'train': _parallel('en', 'wmt_ende_10k/src-train.txt', 'de', 'wmt_ende_10k/tgt-train.txt'),
    'validation': _parallel('en', 'wmt_ende_10k/src-val.txt', 'de', 'wmt_ende_10k/tgt-val.txt')}

RECORDS = (
    _record('wmt14_en_de', 'en', 'de', summary='WMT 2014 English to German', tfds_name='wmt14_translate/de-en',
            licence='research use; statmt.org/wmt14', files=_SAMPLE),
    _record('wmt14_de_en', 'de', 'en', summary='WMT 2014 German to English', tfds_name='wmt14_translate/de-en',
            licence='research use; statmt.org/wmt14', files=_SAMPLE),
    _record('wmt16_en_de', 'en', 'de', summary='WMT 2016 English to German', tfds_name='wmt16_translate/de-en',
            licence='research use; statmt.org/wmt16'),
    _record('wmt16_de_en', 'de', 'en', summary='WMT 2016 German to English', tfds_name='wmt16_translate/de-en',
            licence='research use; statmt.org/wmt16'),
    _record('iwslt2017_en_de', 'en', 'de', summary='IWSLT 2017 English to German', licence=_IWSLT),
    _record('iwslt2017_de_en', 'de', 'en', summary='IWSLT 2017 German to English', licence=_IWSLT),
    *(_flores(target) for target in ('de', 'fr', 'ro', 'es')),
    _record('tatoeba_en_fr', 'en', 'fr', summary='Tatoeba English to French', licence='CC BY 2.0 FR; tatoeba.org',
            files={'train': (Files(('tatoeba_enfr/train.tsv.gz',), columns=('en', 'fr')),),
                   'test': (Files(('tatoeba_enfr/dev.tsv.gz',), columns=('en', 'fr')),)}),
)
