"""`hf://` and `kaggle://` names: fetched when somebody asks for it, at a pinned revision, weights and texts only."""

import pathlib
import re

from specjax.core import errors

REQUIREMENTS = (
    'Names are hf://OWNER/NAME@REVISION with a commit of 40 hexadecimal digits, or kaggle://OWNER/MODEL/FRAMEWORK/VARIANT/'
    'VERSION with a number: a name without one means other weights tomorrow. Gemma is licensed: accept its terms on the '
    'model\'s page with your account first, and log in (HF_TOKEN, or ~/.kaggle/kaggle.json).')

_REMOTE = re.compile(r'(hf|kaggle)://.*', re.DOTALL)
_PART = r'[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}'
_HF = re.compile(rf'hf://({_PART}/{_PART})@([0-9a-f]{{40}})')
_KAGGLE = re.compile(rf'kaggle://({_PART}/{_PART}/{_PART}/{_PART}/[1-9][0-9]{{0,5}})')

# No pickles, no code: what else lies in a repository is not fetched at all.
_WANTED = ['*.safetensors', '*.safetensors.index.json', 'config.json', 'generation_config.json', 'tokenizer.json',
           'tokenizer.model', 'spiece.model', 'tokenizer_config.json', 'special_tokens_map.json']


def is_remote(name: str) -> bool:
  """Whether `name` is a place in the network."""
  return _REMOTE.fullmatch(name) is not None


def fetch(name: str) -> pathlib.Path:
  """The local folder with the files of `name`, downloaded unless they lie in the cache of the library that does it.

  Raises:
    CheckpointError: the name has no pinned revision, the library is not installed, or the download fails, for example
      because the licence has not been accepted.
  """
  match = _HF.fullmatch(name) or _KAGGLE.fullmatch(name)
  if match is None:
    raise errors.CheckpointError(
        what='name of a checkpoint in the network', where=name, got='no pinned revision, or not a name', fix=REQUIREMENTS)
  library = 'huggingface_hub' if name.startswith('hf:') else 'kagglehub'
  try:
    if library == 'huggingface_hub':
      import huggingface_hub
      return pathlib.Path(
          huggingface_hub.snapshot_download(match[1], revision=match[2], allow_patterns=_WANTED))
    import kagglehub
    return pathlib.Path(kagglehub.model_download(match[1]))
  except ImportError as error:
    raise errors.CheckpointError(
        what=f'{library} is not installed', where=name, fix=f'pip install {library}, or fetch the files yourself') from error
  except Exception as error:  # Each library has its own for a refused licence, a missing file and a dead network.
    raise errors.CheckpointError(what='download', where=name, got=str(error)[:1000], fix=REQUIREMENTS) from error
