"""Installs specjax: `pip install -e .[test]`."""

import os

import setuptools
from setuptools.command import build_py

RUNTIME = [
    'jax>=0.10',
    'numpy>=2.0',
    'flax>=0.12',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.11',
    'seqio>=0.0.20',
    'gin-config>=0.5',
    'absl-py>=2.1',
    'clu>=0.0.12',
    'tensorboard>=2.18',
    'safetensors>=0.5',
    'sentencepiece>=0.2',
    'tokenizers>=0.21',
    'sacrebleu>=2.5',
    'rouge-score>=0.1.2',
    'tqdm>=4.66',
    'matplotlib>=3.9',
    'jinja2>=3.1',
]

EXTRAS = {
    'test': ['pytest>=8', 'pytest-timeout>=2.3', 'pytest-xdist>=3.5', 'hypothesis>=6.100', 'scipy>=1.13',
             'nbclient>=0.11', 'ipykernel>=6.29'],
    'peers': ['transformers>=5', 'torch>=2.6', 'tokenizers>=0.21'],
    'plan': ['libtpu>=0.0.20'],
    'gpu': ['jax[cuda12]>=0.10'],
    'tpu': ['jax[tpu]>=0.10'],
    't5x': ['t5x @ git+https://github.com/google-research/t5x@cc342d4'],
    'gemma': ['gemma>=3.3', 'kauldron>=1.4'],
}


class BuildWithGinFiles(build_py.build_py):
  """gin/ is no package (it would shadow gin-config): installed, its files lie in specjax/gin_files."""

  def run(self):
    super().run()
    if not self.editable_mode:
      self.copy_tree('gin', os.path.join(self.build_lib, 'specjax', 'gin_files'))


setuptools.setup(
    name='specjax',
    version='0.1.0',
    description='Fast language-model decoding in JAX: speculative decoding, cascades and their relatives, proved exact.',
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['specjax', 'specjax.*']),
    cmdclass={'build_py': BuildWithGinFiles},
    package_data={
        'specjax': ['ARCHITECTURE.md'],
        'specjax.pairs': ['data/*/*', 'data/*'],
        'specjax.tasks': ['data/*'],
        'specjax.evaluation': ['templates/*'],
        'specjax.integrations': ['*.gin'],
    },
    install_requires=RUNTIME,
    extras_require=EXTRAS,
)
