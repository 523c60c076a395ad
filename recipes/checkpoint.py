"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is a folder `step-00000123` of safetensors files and a `state.json`, with a `manifest.json` of their sizes
and SHA-256. It is written aside, synced to the disk and renamed into place, so that it is either whole or not there.
Nothing is read before it is verified, and nothing is ever unpickled.

Everything that changes a folder is for the main process alone; any process may load.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tasks.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds."""

    tensors: dict[str, dict[str, Tensor]]
    """Named tensors on the CPU, by the stem of their file: `model`, `optimizer`, `ema`."""
    state: dict[str, Any]


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of a step, as one: it is there with every byte, or not at all.

    `tensors` go by the stem of their file; those that share memory are stored once and share it again when loaded.
    `state` is anything that JSON can say. A step that was saved before with the same tensors is left as it is, its
    state too. Raises InputError where the disk refuses, with the bytes that are needed; earlier ones are untouched.
    """
    final, aside = path_of(folder, step), folder / f".tmp-{secrets.token_hex(4)}"
    try:
        aside.mkdir(parents=True)
        _write_json(aside / "state.json", state)
        for stem, named in tensors.items():
            write_tensors(aside / f"{stem}.safetensors", named)
        manifest = {"files": {file.name: _fingerprint(file) for file in sorted(aside.iterdir())}, "step": step}
        _write_json(aside / "manifest.json", manifest)
        _sync(aside)
        if not _already_saved(final, manifest):
            os.rename(aside, final)
        _sync(folder)
    except OSError as error:
        needed = sum(tensor.nbytes for named in tensors.values() for tensor in named.values())
        raise InputError(f"{final} cannot be saved: {error}; it needs {needed:,} bytes") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def path_of(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies in a folder of checkpoints."""
    return folder / f"step-{step:08d}"


def verify(path: Path) -> list[str]:
    """Return what is wrong with a checkpoint, one reason per file; nothing when it is whole."""
    try:
        text = (path / "manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)
        listed = {name: (file["bytes"], file["sha256"]) for name, file in manifest["files"].items()}
        step = manifest["step"]
        present = {file.name for file in path.iterdir()} - {"manifest.json"}
    except FileNotFoundError:
        return ["manifest.json is missing" if path.is_dir() else "there is no such folder"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"manifest.json cannot be read ({type(error).__name__}: {error})"]
    reasons = [f"{name} is missing" for name in sorted({"state.json", *listed} - present)]
    for name in sorted(present):
        if name not in listed or not (name == "state.json" or name.endswith(".safetensors")):
            reasons.append(f"{name} does not belong to a checkpoint")
        else:
            reasons += _differences(path / name, *listed[name])
    if _step_of(path) not in (None, step):
        reasons.append(f"manifest.json is that of step {step}")
    if not reasons and text != _as_json(manifest):
        reasons.append("manifest.json was changed")
    return reasons


def load(path: Path) -> Checkpoint:
    """Verify and read one checkpoint. Raises InputError that names each file that is not what was saved."""
    reasons = verify(path)
    if reasons:
        raise InputError(f"{path} cannot be used: {'; '.join(reasons)}")
    tensors = {file.stem: read_tensors(file) for file in sorted(path.glob("*.safetensors"))}
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path / 'state.json'}: {error}") from None
    return Checkpoint(tensors, state)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return what is named like a checkpoint, by step; the order in time does not count."""
    paths = [path for path in folder.glob("step-*") if path.is_dir() and not path.is_symlink()]
    return sorted((path for path in paths if _step_of(path) is not None), key=lambda path: _step_of(path) or 0)


def newest(folder: Path, read_only: bool = False) -> Path | None:
    """Return the last checkpoint that is whole, or None where none was ever saved.

    Bad ones after it are renamed to `.bad-*`, unless `read_only`, with a warning. Raises InputError where all are bad:
    to start again from nothing is for the user to decide.
    """
    bad: dict[Path, list[str]] = {}
    for path in reversed(list_checkpoints(folder)):
        reasons = verify(path)
        if not reasons:
            for each, why in bad.items():
                log.warning("%s is not used: %s", each, "; ".join(why))
                if not read_only:
                    _set_aside(each)
            return path
        bad[path] = reasons
    bad |= {path: ["it was set aside"] for path in sorted(folder.glob(".bad-*"))}
    if bad:
        listed = "; ".join(f"{path.name}: {', '.join(reasons)}" for path, reasons in bad.items())
        raise InputError(f"{folder}: no checkpoint can be used; move them away to start afresh. {listed}")
    return None


def prune(folder: Path, keep_last: int, keep: Collection[Path] = (), every: int = 0) -> None:
    """Delete all but the last few checkpoints, those in `keep`, and those of each `every`-th step.

    The newest always stays, and nothing is deleted unless it is whole.
    """
    paths = list_checkpoints(folder)
    spared = {path.name for path in paths[-max(keep_last, 1) :]} | {path.name for path in keep}
    surplus = [path for path in paths if path.name not in spared and not (every and (_step_of(path) or 0) % every == 0)]
    if surplus and (reasons := verify(paths[-1])):
        log.warning("%s: nothing is pruned, %s", paths[-1], "; ".join(reasons))
        return
    for path in surplus:
        trash = folder / f".trash-{secrets.token_hex(4)}"
        try:
            os.rename(path, trash)
            shutil.rmtree(trash)
        except OSError as error:
            raise InputError(f"{path} cannot be deleted: {error}") from error


def clean(folder: Path) -> None:
    """Remove what a killed process left half written or half deleted."""
    for path in [*folder.glob(".tmp-*"), *folder.glob(".trash-*")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_file() and not path.is_symlink():
            path.unlink()


def check_writable(folder: Path) -> None:
    """Make the folder and write to it, before any work that would be lost. Raises InputError with the reason."""
    probe = folder / f".tmp-{secrets.token_hex(4)}"
    try:
        probe.mkdir(parents=True)
        probe.rmdir()
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}; choose another folder") from None


def _step_of(path: Path) -> int | None:
    match = re.fullmatch(r"step-(\d{8,})", path.resolve().name)
    return int(match[1]) if match else None


def _set_aside(path: Path) -> None:
    os.rename(path, path.with_name(f".bad-{path.name}-{secrets.token_hex(4)}"))


def _already_saved(final: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the step has been saved with the same tensors; a bad folder of that name is set aside."""
    if not final.exists():
        return False
    if reasons := verify(final):
        log.warning("%s is set aside: %s", final, "; ".join(reasons))
        _set_aside(final)
        return False
    saved = json.loads((final / "manifest.json").read_text(encoding="utf-8"))["files"]
    if {**saved, "state.json": None} != {**manifest["files"], "state.json": None}:
        raise InputError(f"{final} holds other tensors of the same step: move it away, or choose another folder")
    return True


def write_tensors(path: Path, named: Mapping[str, Tensor]) -> None:
    """Store each piece of memory once: safetensors refuses shared memory, so other names go into its metadata.

    Raises OSError where the disk refuses.
    """
    unique: dict[str, Tensor] = {}
    names: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    storages: set[int] = set()
    for name, tensor in named.items():
        view = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and view in names:
            aliases[name] = names[view]
            continue
        names[view] = name
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        unique[name] = plain.clone() if storage in storages else plain
        storages.add(storage)
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(unique, path, metadata={"aliases": json.dumps(aliases)})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # safetensors lets nobody else read its files
    _sync(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote, every name of it. Raises InputError where the file cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
    except SafetensorError as error:
        raise InputError(f"{path}: {error}") from None
    return tensors | {alias: tensors[name] for alias, name in aliases.items()}


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(_as_json(content), encoding="utf-8")
    _sync(path)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _differences(path: Path, size: int, digest: str) -> list[str]:
    try:
        found = _fingerprint(path)
    except OSError as error:
        return [f"{path.name} cannot be read: {error.strerror}"]
    if found["bytes"] != size:
        return [f"{path.name} has {found['bytes']} bytes instead of {size}"]
    return [] if found["sha256"] == digest else [f"{path.name} has another SHA-256 than when it was saved"]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
