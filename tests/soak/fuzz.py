"""Fuzzes the readers of files that others wrote, for as long as is asked: python -m tests.soak.fuzz --minutes 60.

Each reader runs in a process of its own with a limit of memory; a file that breaks it is kept in FOLDER for the corpus.
"""

import argparse
import hashlib
import multiprocessing
import random
import resource
import time
from pathlib import Path

from tests.fuzz.targets import TARGETS, check, files_of

_MEMORY_BYTES = 6 << 30  # of addresses; torch and Arrow map 3 of them
_SLOW_SECONDS = 5.0


def mutate(body: bytes, pool: list[bytes], chance: random.Random) -> bytes:
    """Return a file with places changed, cut, doubled, or joined with another file."""
    found = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        place, count = chance.randint(0, len(found)), chance.choice((1, 1, 2, 4, 8, 16, 64, 512))
        match chance.randint(0, 5):
            case 0:
                found[place : place + 1] = bytes([chance.choice((0, 1, 127, 128, 255, 48, 57, 10, 61, 47))])
            case 1:
                found[place : place + count] = chance.randbytes(count)
            case 2:
                del found[place : place + count]
            case 3:
                found[place:place] = found[place : place + count] * chance.choice((1, 2, 200))
            case 4:
                other = chance.choice(pool)
                start = chance.randint(0, len(other))
                found[place : place + count] = other[start : start + count]
            case 5:
                found[place : place + 8] = chance.choice((2**31 - 1, 2**31, 2**63 - 1, 2**64 - 1)).to_bytes(8, "little")
    return bytes(found[: 1 << 20])


def fuzz(name: str, seconds: float, seed: int, folder: Path, last: Path) -> None:
    """Feed a reader until the time is over; print how much it was fed, and what broke it."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    chance, pool, count, slowest = random.Random(seed), files_of(name), 0, 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        body = mutate(chance.choice(pool), pool, chance)
        last.write_bytes(body)  # a reader that kills the process has left it
        began = time.monotonic()
        problem = check(name, body)
        taken = time.monotonic() - began
        slowest, count = max(slowest, taken), count + 1
        if problem or taken > _SLOW_SECONDS:
            kept = folder / name / hashlib.sha256(body).hexdigest()[:12]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(body)
            print(f"{name}: {problem or f'{taken:.1f} s'}: {kept}", flush=True)
    print(f"{name}: {count:,} files in {seconds:,.0f} s, the slowest in {slowest:.2f} s", flush=True)


def main() -> None:
    """Fuzz all readers, one after the other; exit 1 if one broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS, action="append")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.only or list(TARGETS)
    killed = []
    for name in names:
        last = options.out / f"last-{name}"
        seconds = options.minutes * 60 / len(names)
        process = multiprocessing.get_context("spawn").Process(
            target=fuzz, args=(name, seconds, options.seed, options.out, last)
        )
        process.start()
        process.join(seconds + 120)
        if process.exitcode != 0:
            killed.append(name)
            print(f"{name}: ended with {process.exitcode} at {last}", flush=True)
            process.kill()
        else:
            last.unlink(missing_ok=True)
    raise SystemExit(bool(killed) or any(path.is_dir() for path in options.out.iterdir()))


if __name__ == "__main__":
    main()
