"""Members of tars that others wrote: what a header claims has a limit before memory is taken for it."""

import re
import tarfile
from typing import Any

TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, ArithmeticError, IndexError, RecursionError)  # of its parser
_MOST_HEADER_BYTES = 1 << 20  # of an extended header: names have at most 4 KiB on Linux
_MOST_MEMBER_BYTES = 1 << 62  # larger ones do not fit the numbers that positions in files are
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED = (*_LONG_NAMES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_RECORD = re.compile(rb"(\d{1,7}) [^=]+=")  # of an extended header: its length, a word and its value


class Member(tarfile.TarInfo):
    """A member whose claims of size have a limit, before memory is taken or a position computed from them."""

    def _proc_member(self, tar: tarfile.TarFile) -> "Member":
        """Do as tarfile, which reads extended headers whole, whatever size they claim."""
        if self.size < 0 or self.size > _MOST_MEMBER_BYTES:
            raise tarfile.ReadError(f"a member claims {self.size:,} bytes")
        if self.type in _EXTENDED:
            if self.size > _MOST_HEADER_BYTES:
                raise tarfile.ReadError(
                    f"an extended header claims {self.size:,} bytes, at most {_MOST_HEADER_BYTES:,} are read"
                )
            if self.type not in _LONG_NAMES:
                _check_records(tar, self.size)
            if self.type == tarfile.XGLTYPE:
                _check_globals(tar)
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


def check_size(member: tarfile.TarInfo, num_bytes: int) -> None:
    """Refuse a size that no tar of `num_bytes` has room for; extended headers may replace that of the header.

    Raises:
        tarfile.ReadError: It claims more, or less than nothing.
    """
    if not 0 <= member.size <= (_MOST_MEMBER_BYTES if member.issparse() else num_bytes):
        raise tarfile.ReadError(f"{member.name} claims {member.size:,} bytes in a tar of {num_bytes:,}")


def _check_globals(tar: tarfile.TarFile) -> None:
    """Refuse global headers that pile up: tarfile keeps the last value of each of their words."""
    num_bytes = sum(len(name) + len(value) for name, value in tar.pax_headers.items())
    if num_bytes > _MOST_HEADER_BYTES:
        raise tarfile.ReadError(f"its global headers hold {num_bytes:,} bytes, at most {_MOST_HEADER_BYTES:,} are kept")


def _check_records(tar: tarfile.TarFile, num_bytes: int) -> None:
    """Refuse records that overlap: tarfile would copy and search each one to the end of the header."""
    file: Any = tar.fileobj
    start = file.tell()
    body = file.read(num_bytes)
    file.seek(start)
    position = 0
    while position < len(body) and body[position]:
        record = _RECORD.match(body, position)
        end = position + int(record[1]) if record else 0
        if not record or not record.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            raise tarfile.ReadError("an extended header is damaged")
        position = end
