# Sourced by the other scripts: makes .venv when there is none, installs specjax with the extras asked for, activates it.
#   source scripts/environment.sh test
extras=${1:-}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
stamp="$root/.venv/installed-${extras:-runtime}"
if [[ ! -x "$root/.venv/bin/python" ]]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "specjax needs Python 3.11 or later; set PYTHON" >&2; exit 1; }
  "$python" -m venv "$root/.venv"
fi
source "$root/.venv/bin/activate"
if [[ ! -f "$stamp" || "$root/setup.py" -nt "$stamp" ]]; then
  echo "installing specjax${extras:+ with extras: $extras} into $root/.venv ..."
  python -m pip install --quiet --disable-pip-version-check --editable "$root${extras:+[$extras]}"
  touch "$stamp"
fi
