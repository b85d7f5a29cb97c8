"""Find the file with the voxels that a header names: only beside the header."""

from pathlib import Path, PurePosixPath, PureWindowsPath

from crkd_cli.data.raw.limits import check_regular
from crkd_cli.errors import CrkdError


def neighbor(header: Path, name: str) -> Path:
    """Return the file `name` in the folder of `header`.

    Raises CrkdError unless it is the plain name of another regular file, because a header from
    elsewhere could name any file of this machine.
    """
    if name != PurePosixPath(name).name or name != PureWindowsPath(name).name or "\0" in name:
        raise CrkdError(
            f"{header} names {name!r} as the file of its voxels; "
            "put this file beside it, and write its plain name there"
        )
    file = header.with_name(name)
    if not file.exists():
        raise CrkdError(f"{header} needs {name} beside it; copy both")
    check_regular(file)
    if file.samefile(header):
        raise CrkdError(f"{header} names itself as the file of its voxels; copy it again")
    if file.resolve().parent != header.parent.resolve():
        raise CrkdError(f"{file} is a link to another folder; copy the file there instead")
    return file
