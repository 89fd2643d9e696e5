"""Read settings in a process with at most 1 GB of addresses: `python -m tests.fuzz.limited FOLDER COUNT`.

Only what reads settings is imported. It prints how many inputs were read, and ends with an error where one of them is
not read or refused, or runs out of memory.
"""

import contextlib
import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from raysim.config import loader
from raysim.config.experiment import ExperimentSettings
from raysim.core.errors import SettingError
from tests.fuzz.pieces import PIECES

MAX_BYTES, MAX_MESSAGE = 10**9, 1000
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}\n" for level in range(1, 12)
)
BOMBS = {
    "billion laughs": LAUGHS,
    "billion merges": MERGED,
    "an alias of itself": "a: &a [*a, *a]\n",
    "many anchors": "".join(f"a{index}: &b{index} x\n" for index in range(100_000)),
    "a long int": f"rounds: {'9' * 10**6}\n",
    "a long hexadecimal int": f"rounds: 0x{'f' * 10**6}\n",
    "a long float": f"training: {{learning_rate: 0.{'1' * 10**6}}}\n",
    "a great exponent": "training: {learning_rate: 1e999999999}\n",
    "sexagesimals": f"rounds: 1{':59' * 100_000}\n",
    "lists in lists": "a: " + "[" * 10**6,
    "closed lists in lists": "a: " + "[" * 10**5 + "]" * 10**5 + "\n",
    "mappings in mappings": "a: " + "{a: " * 10**5,
    "blocks in blocks": "".join(" " * depth + "a:\n" for depth in range(2000)),
    "items in items": "- " * 10**6,
    "a long text": f"experiment: {'x' * 10**8}\n",
    "a long key": f"{'x' * 10**7}: 1\n",
    "many keys": "".join(f"key{index}: 1\n" for index in range(10**6)),
    "many items": f"evaluation: {{targets: [{'0.5, ' * 10**6}]}}\n",
    "many documents": "---\n" * 10**6,
    "many tags": "a: " + "!!str " * 10**5 + "x\n",
    "many escapes": 'a: "' + "\\U0001F600" * 10**6 + '"\n',
}
OVERRIDES = (
    f"rounds={'9' * 10**6}",
    f"{'a.' * 10**5}=1",
    f"{'a' * 10**7}=1",
    "population.tiers.999999999999.name=x",
    "evaluation.targets.4000000000=0.5",
    f"model.options={'[' * 10**5}",
    f"model.options={'{a: ' * 1000}{'}' * 1000}",
    "model.options=&a [*a, *a]",
)


def changed(text: str, random: random.Random) -> str:
    """Replace some pieces of a text."""
    for _ in range(random.randint(1, 4)):
        start = random.randint(0, len(text))
        stop = start + random.randint(0, 40)
        piece = random.choice(
            [random.choice(PIECES), text[start:stop] * 2, "", "\n", "\t", "\0", "\ud800", "[" * 500]
        )
        text = text[:start] + piece + text[stop:]
    return text * random.choice([1, 1, 1, 2, 50])


def inputs(folder: Path, count: int) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield names, texts of files, and overrides."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))]
    whole = (folder / "digits.yaml").read_text(encoding="utf-8")
    for name, bomb in BOMBS.items():
        yield name, bomb, ()
        yield f"{name}, after settings", whole + bomb, ()
    for override in OVERRIDES:
        yield override[:40], whole, (override,)
    draws = random.Random(0)
    for number in range(count):
        overrides = (f"{draws.choice(['seed', 'training', 'a.b'])}={changed(draws.choice(PIECES), draws)}",)
        yield f"number {number}", changed(draws.choice(texts), draws), overrides if number % 4 == 0 else ()


def outcome_of(text: str, overrides: tuple[str, ...]) -> str:
    """Return the message with which settings are refused; empty: they are allowed."""
    try:
        found = loader.with_overrides(loader.mapping_in(text, "CONFIG='c.yaml'"), overrides)
    except SettingError as error:
        return str(error)
    loader.validated(loader.mapping_in(loader.to_yaml(found), "CONFIG='again'"), ExperimentSettings)
    return ""


def is_limited() -> bool:
    """Whether this process cannot have as much memory as is forbidden."""
    try:
        return not bytearray(MAX_BYTES)
    except MemoryError:
        return True


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    if not is_limited():
        sys.exit("the limit is not in force")
    read = 0
    for name, text, overrides in inputs(folder, count):
        message = outcome_of(text, overrides)
        if "MemoryError" in message or len(message) >= MAX_MESSAGE:
            sys.exit(f"{name}: {message[:MAX_MESSAGE]}")
        if name in BOMBS and not message:
            sys.exit(f"{name} is allowed")
        read += 1
    with contextlib.suppress(SettingError):
        loader.load(Path("/dev/zero"))
    print(read)


if __name__ == "__main__":
    main()
