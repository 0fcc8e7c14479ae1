from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.located_yaml import read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "a.yaml").write_bytes(text.encode("latin-1"))
    return tmp_path / "a.yaml"


def test_values_and_lines(tmp_path: Path) -> None:
    located = read_yaml(written(tmp_path, "a: &x {b: 1}\nc:\n- *x\n- {<<: *x, d: 2020-01-02}\n"))
    assert located.data == {"a": {"b": 1}, "c": [{"b": 1}, {"b": 1, "d": datetime.date(2020, 1, 2)}]}
    assert located.where(("c", 1)).endswith("a.yaml:4: c.1")
    assert located.where(("c", 1, "e")).endswith("a.yaml:4: c.1.e")
    assert read_yaml(written(tmp_path, "")).data is None


def test_numbers_and_texts(tmp_path: Path) -> None:
    """Forms that are read alike by a person and by YAML 1.1 or 1.2, or that settings of another type then reject."""
    text = "[0, -0, 1_000, 0x10, 0b11, 0.5, 1e3, 1.0e+3, 08, 0o10, '010', '1:30', a:1, on, no]"
    assert read_yaml(written(tmp_path, text)).data == [
        0, 0, 1_000, 16, 3, 0.5, "1e3", 1e3, "08", "0o10", "010", "1:30", "a:1", True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        (BOMB, r"more than 50,000 values \(aliases count each time\); shorten the file"),
        ("m0: &m0 {k: v}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 9)),
         r"more than 50,000 values"),
        ("a: &a [*a]", r"a.yaml:1: a\.0: contains itself by an alias; remove it"),
        ("a: &a {b: *a}", r"a.yaml:1: a\.b: contains itself by an alias; remove it"),
        ("[" * 1_000, r"is nested too deeply; fix the file"),
        ("a:\n  b: !!binary aGk=", r"a.yaml:2: a\.b: the tag tag:yaml.org,2002:binary is not supported; remove it"),
        ("a: !!set {b}", r"a.yaml:1: a: the tag \S+set is not supported"),
        ("a: 2020-13-45", r"is not valid YAML \(month must be in 1..12\)"),
        ("a: " + "9" * 5_000, r"a.yaml:1: a: is a number of 5,000 digits"),
        ("a: 0x" + "f" * 5_000, r"a.yaml:1: a: is a number of 5,002 digits"),
        ("a:\n  b: 010", r'a.yaml:2: a\.b: YAML reads 010 as a number in base 8; write a decimal number without leading zeros,'
         r' or text in quotes: "010"$'),
        ("a: [-0_7]", r"a.yaml:1: a\.0: YAML reads -0_7 as a number in base 8"),
        ("a: {007: b}", r"a.yaml:1: a\.007: YAML reads 007 as a number in base 8"),
        ("a: 1:30", r"a.yaml:1: a: YAML reads 1:30 as a number in base 60"),
        ("a: 1:30:00.5", r"a.yaml:1: a: YAML reads 1:30:00.5 as a number in base 60"),
        ("? [a]\n: b", r"has a key that is not text"),
        ("a: !!int x", r"is not valid YAML"),
        ("a:\n  b: !!bool x", r"a.yaml:2: a\.b: x does not fit the tag \S+:bool; remove the tag"),
        ("!!timestamp x: b", r"a.yaml:1: x: x does not fit the tag \S+:timestamp; remove the tag"),
        ("a: 1\nb: 2\na: 3", r"a.yaml:3: a: duplicate key; it is also on line 1; remove one"),
        ("a:\n  1.1: b\n  1.10: c", r"a.yaml:3: a\.1\.10: duplicate key; YAML reads it as equal to 1\.1 on line 2; remove one, or"
         " write both in quotes$"),
        ("a: {1: b, true: c}", r"a.yaml:1: a\.true: duplicate key; YAML reads it as equal to 1 on line 1"),
        ("# a\na: \xff", r"a.yaml:2: byte 0xff is not UTF-8; save the file as UTF-8"),
        ("#" * 2**18 + "#", r"cannot read \S+ \(More than 262,144 bytes\)"),
    ],
)  # fmt: skip
def test_hostile_files(tmp_path: Path, text: str, pattern: str) -> None:
    with pytest.raises(InputError, match=pattern) as raised:
        read_yaml(written(tmp_path, text))
    assert "\n" not in str(raised.value)
