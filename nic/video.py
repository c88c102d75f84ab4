"""Videos to .nic files and back: the whole story of one clip, in the order in which it happens.

Encoding goes group by group, so that one group of frames is in memory at a time (where a size is to be met or the
network to be fitted, before that two), and puts each finished group into the output's ``.part`` file, from which an
interrupted run goes on.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch

from nic.bitstream.clip import Clip, ClipFile, Group, pack_end, pack_group, pack_origin, pack_start, salvage_clip
from nic.bitstream.header import Header, Kind, Mode
from nic.bitstream.limits import MAX_GROUP_PIXELS, MAX_GROUPS
from nic.effort import check_options, worth_of
from nic.encoder import level_at, psnr
from nic.errors import BadFile, BadOutput, NicError, UsageError
from nic.frames import (
    CodedFrame,
    GroupMotion,
    decode_group,
    encode_group,
    level_of,
    read_group,
    squared_error,
    to_frame,
)
from nic.loaded import load_model
from nic.media import Source, part_of
from nic.models import store
from nic.models.config import LEVELS
from nic.models.fit import Sample, exponents, fit
from nic.models.motion import Found
from nic.models.order import Layer, Place
from nic.models.transforms import LATENT
from nic.output import replacing, unwritable
from nic.refine import Refinement, refine
from nic.weights import apply_weights, encode_weights, worth

__all__ = ["EFFORTS", "Effort", "Encoded", "Progress", "compress", "decode_frames", "decode_one", "read", "verify"]

GROUP = 48  # frames
SPANS = (8, 4, 2)  # frames between forward frames: few where much moves
TRIAL = 17  # frames that are coded to choose among them, at more than the lowest effort
TRIAL_SIDE = 640  # pixels, of their middles
# How much better, in quality levels, key, forward and middle frames are than leaves: others are predicted from them.
ABOVE = {Layer.KEY: 70, Layer.FORWARD: 52, Layer.MIDDLE: 28, Layer.LEAF: 0}
FIT_GROUPS = 2  # groups from which the clip's network is learned
WINDOW = 32  # latents a side of what a sample holds of a frame: 512 pixels
SEARCHES = 5  # sizes tried for a target
LEVELS_PER_E = 55  # quality levels for e times the bytes, about; measured
OVERHEAD = 4  # bytes of a frame besides its words


@dataclass(frozen=True)
class Effort:
    """What an effort means: epochs of fitting the network, and iterations of refining each frame's latents.

    trial: frames that are coded to choose the span.
    """

    epochs: int
    iterations: int
    trial: int = TRIAL


EFFORTS = {
    1: Effort(0, 0, 9),
    2: Effort(0, 1),
    3: Effort(0, 2),
    4: Effort(0, 3),
    5: Effort(8, 5),
    6: Effort(16, 8),
    7: Effort(32, 12),
    8: Effort(100, 20),
    9: Effort(400, 40),
}


@dataclass(frozen=True)
class Progress:
    """Where an encoder is: ``done`` of 1, bytes so far, mean PSNR in dB of the frames coded so far (NaN before)."""

    done: float
    size: int
    psnr: float


@dataclass(frozen=True)
class Encoded:
    """What was written: bytes, mean PSNR of the frames coded in this run in dB, notes for the user in one line each."""

    size: int
    psnr: float
    notes: tuple[str, ...]


def compress(
    source: Source,
    target: str,
    *,
    quality: float | None = None,
    bpp: float | None = None,
    size: int | None = None,
    effort: int = 4,
    audio: bool = True,
    resume: bool = False,
    device: str = "auto",
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Encoded:
    """Writes a video into the file ``target`` at a quality (0 to 100, else 50), or near bits per pixel or bytes of it.

    The bytes so far are in ``part_of(target)``; with ``resume``, its finished groups of the same settings are taken
    over.
    Raises UsageError, BadInput, and BadOutput where the target is no file or cannot be written.
    """
    check_options(effort, quality, bpp=bpp, size=size)
    part = claimed(target)
    model = model_of_clips(store.VIDEO, device)
    encoder = ClipEncoder(source, model, EFFORTS[effort])
    track = source.audio() if audio else None
    notes = list(source.notes)
    if bpp is not None:
        size = round(bpp * source.width * source.height * len(source.ticks) / 8)
    level = level_at(quality)
    encoder.choose_span(level)
    if size is not None:
        if track and len(track) >= size:
            raise UsageError(f"its audio track alone takes {len(track):,} bytes: use --no-audio or a larger file")
        level = encoder.search(size - len(track or b""))
    job = Job(encoder, level, track, part, progress)
    try:
        job.run(resume)
    except (NicError, OSError) as error:
        if not job.coded:  # else --resume goes on from there
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(target, error) from error
        raise
    job.finish(target)
    written = os.path.getsize(target)
    if size is not None and abs(written - size) > 0.1 * size:
        notes.append(f"{written:,} bytes instead of {size:,}: a video's size is only estimated before it is coded")
    return Encoded(written, job.psnr, (*notes, *job.notes))


def claimed(target: str) -> Path:
    """The part file of a target, after making sure that its folder is there and can be written. Raises BadOutput."""
    if os.path.exists(target) and not os.path.isfile(target):
        raise BadOutput(f"{target} is no file, and a video cannot be written to anything else")
    part = part_of(target)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=part.parent):
            return part
    except OSError as error:
        raise unwritable(target, error) from error


class ClipEncoder:
    """One video with one model. Raises BadInput for a video beyond the limits."""

    def __init__(self, source: Source, model: store.Model, effort: Effort) -> None:
        self.source = source
        self.model = model
        self.effort = effort
        pixels, count = source.width * source.height, len(source.ticks)
        wanted = max(GROUP, -(-count // MAX_GROUPS))  # more where there would be too many groups
        self.length = max(1, min(wanted, MAX_GROUP_PIXELS // pixels, count))
        self.span = SPANS[0]
        self.kept: dict[int, list[np.ndarray]] = {}  # frames of the groups that stand for the video
        self.motions: dict[int, GroupMotion] = {}  # and their motion
        pack_start(self.header(0), self.clip(0), None, None)  # knows the limits, before any work is done

    def header(self, level: int) -> Header:
        size = self.source.width, self.source.height
        return Header(Kind.VIDEO, Mode.FIDELITY, *size, 3, 8, above(level, Layer.KEY), self.model.id)

    def clip(self, level: int) -> Clip:
        tick, aspect = self.source.tick, self.source.aspect
        return Clip(
            frames=len(self.source.ticks),
            group=self.length,
            span=self.span,
            forward=above(level, Layer.FORWARD),
            middle=above(level, Layer.MIDDLE),
            leaf=above(level, Layer.LEAF),
            tick_num=tick.numerator,
            tick_den=tick.denominator,
            aspect_num=aspect.numerator,
            aspect_den=aspect.denominator,
        )

    def groups(self, start: int = 0) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Index and frames of each group from ``start`` on."""
        frames = self.source.frames(start * self.length)
        while group := list(islice(frames, self.length)):
            yield start, group
            del group  # its memory, before the next is read
            start += 1

    def motion(self, index: int, frames: list[np.ndarray]) -> GroupMotion:
        """The motion of a group."""
        return self.motions[index] if index in self.motions else GroupMotion.search(self.model, frames, self.span)

    def choose_span(self, level: int) -> None:
        """Sets the span of least rate-distortion cost at a level, judged by some frames of the group in the middle.

        Groups of a few frames keep the longest.
        """
        if self.length <= max(SPANS):
            return
        middle = len(self.source.ticks) // self.length // 2 * self.length
        tried = islice(self.source.frames(middle), min(self.effort.trial, self.length))
        frames = [middle_of(pixels) for pixels in tried]
        weight = worth_of(self.model, level) / 255**2
        known: dict[tuple[int, int], Found] = {}

        def cost(span: int) -> float:
            costs: list[float] = []

            def add(place: Place, frame: CodedFrame) -> None:
                costs.append(8 * len(frame.words) + weight * squared_error(frames[place.frame], frame.pixels))

            motion = GroupMotion.search(self.model, frames, span, known)
            encode_group(self.model, frames, motion, lambda layer: above(level, layer), 0, add)
            return sum(costs)

        self.span = min(SPANS, key=cost)

    def sampled(self) -> list[tuple[list[np.ndarray], GroupMotion]]:
        """The groups that stand for the video: evenly spread, or all."""
        count = -(-len(self.source.ticks) // self.length)
        wanted = {round((i + 0.5) * count / FIT_GROUPS - 0.5) for i in range(FIT_GROUPS)}
        if not self.kept:
            groups = islice(self.groups(), max(wanted) + 1)
            self.kept = {index: frames for index, frames in groups if index in wanted}
            self.motions = {index: self.motion(index, frames) for index, frames in self.kept.items()}
        return [(frames, self.motions[index]) for index, frames in self.kept.items()]

    def search(self, size: int) -> int:
        """The highest of the levels tried whose file has ``size`` bytes or less, or the lowest of them.

        Judged by the sampled groups, without fitting. Between two levels tried, the logarithm of the size is taken to
        be linear.
        """
        sizes: dict[int, float] = {}
        level = LEVELS // 3
        for _ in range(SEARCHES):
            sizes[level] = math.log(self.bytes_at(level) / max(1, size))
            fitting = max((tried for tried in sizes if sizes[tried] <= 0), default=None)
            larger = min((tried for tried in sizes if fitting is None or tried > fitting), default=None)
            if fitting is None or larger is None:
                level = min(max(level - round(sizes[level] * LEVELS_PER_E), 0), LEVELS)
            else:
                share = sizes[fitting] / (sizes[fitting] - sizes[larger])
                level = min(max(fitting + round(share * (larger - fitting)), fitting + 1), larger - 1)
            if level in sizes:
                break
        return min(sizes) if fitting is None else fitting

    def bytes_at(self, level: int) -> float:
        """The size of the file, about."""
        words = 0
        for frames, motion in self.sampled():
            coded = encode_group(self.model, frames, motion, lambda layer: above(level, layer), 0)
            words += sum(len(frame) + OVERHEAD for frame in coded)
        sampled = sum(len(group) for group, _ in self.sampled())
        return len(pack_start(self.header(level), self.clip(level), None, None)) + (
            words * len(self.source.ticks) / sampled
        )

    def fit(self, level: int, report: Callable[[float], None]) -> bytes | None:
        """The clip's differences to the shipped network, or None if they are not worth their bits."""
        samples: list[Sample] = []
        for frames, motion in self.sampled():

            def keep(place: Place, frame: CodedFrame, frames: list[np.ndarray] = frames) -> None:
                if sample := self.sample(frames[place.frame], frame, above(level, place.layer), len(samples)):
                    samples.append(sample)

            encode_group(self.model, frames, motion, lambda layer: above(level, layer), 0, keep)
        if not samples:
            return None
        counted = sum(sample.height * sample.width for sample in samples)
        scale = self.source.width * self.source.height * len(self.source.ticks) / counted
        steps = exponents(self.model.synthesis, samples, scale)
        changes = fit(self.model.synthesis, samples, steps, scale, self.effort.epochs, report)
        payload = encode_weights(self.model, changes, steps)
        gain = worth(self.model, samples) - worth(apply_weights(self.model, payload), samples)
        return payload if gain * scale > 8 * len(payload) else None

    def sample(self, pixels: np.ndarray, coded: CodedFrame, level: int, seed: int) -> Sample | None:
        """A frame with a residual, or a window of it, for fitting."""
        if coded.latents is None:
            return None
        quality = torch.tensor([self.model.quality(level)], device=self.model.device)
        chance = torch.Generator().manual_seed(seed)
        room = [max(1, side - WINDOW + 1) for side in coded.latents.shape[2:]]
        corner = [int(torch.randint(side, (1,), generator=chance)) for side in room]
        rows, columns = (slice(start, start + WINDOW) for start in corner)
        places = [slice(LATENT * part.start, LATENT * part.stop) for part in (rows, columns)]
        both = to_frame(pixels, self.model.device), coded.prediction
        images, prediction = (image[:, :, places[0], places[1]].half() for image in both)
        height, width = (min(part.stop, side) - part.start for part, side in zip(places, pixels.shape, strict=False))
        latents = coded.latents[:, :, rows, columns].contiguous(memory_format=torch.channels_last)
        return Sample(latents, images, prediction, height, width, quality, worth_of(self.model, level))


def middle_of(pixels: np.ndarray) -> np.ndarray:
    """As much of the middle of a frame [H, W, 3] as a trial codes."""
    top, left = (max(0, side - TRIAL_SIDE) // 2 for side in pixels.shape[:2])
    return pixels[top : top + TRIAL_SIDE, left : left + TRIAL_SIDE].copy()


def above(level: int, layer: Layer) -> int:
    return min(level + ABOVE[layer], LEVELS)


class Job:
    """Encoding into a part file."""

    def __init__(
        self, encoder: ClipEncoder, level: int, audio: bytes | None, part: Path, progress: Callable[[Progress], None]
    ) -> None:
        self.encoder = encoder
        self.level = level
        self.audio = audio
        self.part = part
        self.progress = progress
        self.frames = len(encoder.source.ticks)
        self.fitting = self.frames * encoder.effort.epochs / (encoder.effort.epochs + 4 + 4 * encoder.effort.iterations)
        told = f"{encoder.source.identity.hex()} {encoder.effort}"
        self.origin = pack_origin(hashlib.sha256(told.encode()).digest()[:8])
        self.errors: list[float] = []  # PSNR of each frame
        self.notes: list[str] = []  # for the user
        self.size = self.coded = self.origin_at = 0  # bytes; frames, of earlier runs too; where the origin is told

    @property
    def psnr(self) -> float:
        return float(np.mean(self.errors)) if self.errors else math.nan

    def report(self, done: float) -> None:
        self.progress(Progress(done / (self.frames + self.fitting), self.size, self.psnr))

    def run(self, resume: bool) -> None:
        """Codes what the part file does not hold yet."""
        encoder = self.encoder
        header, clip = encoder.header(self.level), encoder.clip(self.level)
        found = self.resumed(header, clip) if resume else None
        if resume and not found and self.part.exists():
            self.notes.append("what had been begun was of other frames or settings: it is coded anew")
        if found:
            weights, start = found.weights, len(found.groups)
        else:
            weights, start = None, 0
            if encoder.effort.epochs:
                weights = encoder.fit(self.level, lambda done: self.report(done * self.fitting))
            self.part.write_bytes(pack_start(header, clip, self.audio, weights) + self.origin)
        encoder.kept.clear()
        self.origin_at = len(pack_start(header, clip, self.audio, weights))
        self.size, self.coded = self.part.stat().st_size, start * clip.group
        model = apply_weights(encoder.model, weights)
        for index, frames in encoder.groups(start):
            group = self.encode(model, index, frames, encoder.motion(index, frames), header, clip)
            with self.part.open("ab") as file:
                file.write(pack_group(index, group))
            self.size = self.part.stat().st_size
            del frames  # their memory, before the next are read

    def finish(self, target: str) -> None:
        """Makes the part file, without the chunk that tells its origin, the finished one. Raises BadOutput."""
        with replacing(target) as finished, self.part.open("rb") as part, finished.open("wb") as file:
            file.write(part.read(self.origin_at))
            part.seek(len(self.origin), os.SEEK_CUR)
            shutil.copyfileobj(part, file)
            file.write(pack_end())
        self.part.unlink()

    def resumed(self, header: Header, clip: Clip) -> ClipFile | None:
        """The part file, cut behind its last whole group; None if it is of other frames or other settings."""
        try:
            data = self.part.read_bytes()
            found = salvage_clip(data)
        except (OSError, NicError):
            return None
        whole = found.groups.keys() == set(range(len(found.groups)))
        start = pack_start(header, clip, self.audio, found.weights) + self.origin
        if not data.startswith(start) or not whole or found.network_lost:
            return None
        groups = b"".join(pack_group(i, found.groups[i]) for i in range(len(found.groups)))
        if not data.startswith(start + groups):
            return None
        os.truncate(self.part, len(start + groups))
        return found

    def encode(
        self, model: store.Model, index: int, frames: list[np.ndarray], motion: GroupMotion, header: Header, clip: Clip
    ) -> Group:
        start = index * clip.group

        def after(place: Place, frame: CodedFrame) -> None:
            self.errors.append(psnr(frames[place.frame], frame.pixels))
            self.size += len(frame.words) + 3
            self.coded += 1
            self.report(self.fitting + self.coded)

        coded = encode_group(
            model, frames, motion, lambda layer: level_of(header, clip, layer), self.encoder.effort.iterations, after
        )
        ticks = self.encoder.source.ticks[start : start + len(frames)]
        return Group(ticks, tuple(coded))


# --- decoding


def read(data: bytes) -> ClipFile:
    """A video's parts, whatever is intact of them; see ``salvage_clip`` for what is raised."""
    return salvage_clip(data)


def network(file: ClipFile, device: str) -> store.Model:
    return apply_weights(model_of_clips(file.header.model_id, device), file.weights)


def model_of_clips(wanted: bytes | str, device: str) -> store.Model:
    """The installed model of this id or name; raises UnknownModel, and BadFile for one of the extreme mode."""
    model = load_model(wanted, device)
    if not isinstance(model, store.Model):
        raise BadFile(f"model {model.id.hex()} is not for videos")
    return model


def decode_frames(
    file: ClipFile, *, refinement: Refinement | None = None, device: str = "auto"
) -> Iterator[tuple[int, np.ndarray]]:
    """Timestamp in ticks and pixels [H, W, 3] uint8 of every frame whose group is intact, maybe refined.

    Raises BadFile, also if no group is intact, and UsageError for a refinement that shall be consistent.
    """
    check_refinement(refinement)
    if not file.groups:
        raise BadFile("damaged file: no group of frames is intact")
    model = network(file, device)
    for _, group in sorted(file.groups.items()):
        for index, pixels in decode_group(model, file, group):
            yield group.ticks[index], refined(pixels, model, file, refinement)


def refined(pixels: np.ndarray, model: store.Model, file: ClipFile, refinement: Refinement | None) -> np.ndarray:
    """A decoded frame as it is shown. Frames have about the quality of their key frame."""
    return refine(pixels, model, file.header.quality, refinement) if refinement else pixels


def check_refinement(refinement: Refinement | None) -> None:
    """Raises UsageError for what only pictures can have."""
    if refinement and refinement.consistent:
        raise UsageError("only pictures can be made consistent, not videos")


def decode_one(file: ClipFile, frame: int, *, refinement: Refinement | None = None, device: str = "auto") -> np.ndarray:
    """The pixels [H, W, 3] uint8 of frame number ``frame``, from 0; decodes it and what it is predicted from.

    Raises UsageError if there is no such frame, BadFile if its group is lost.
    """
    check_refinement(refinement)
    if not 0 <= frame < file.clip.frames:
        raise UsageError(f"there is no frame {frame}: the video has frames 0 to {file.clip.frames - 1}")
    index, place = divmod(frame, file.clip.group)
    if index not in file.groups:
        raise BadFile(f"frame {frame} is lost: group {index} is damaged")
    model = network(file, device)
    ((_, pixels),) = decode_group(model, file, file.groups[index], place)
    return refined(pixels, model, file, refinement)


def verify(data: bytes, *, device: str = "auto") -> None:
    """Decodes every symbol of an intact file, without making frames; raises BadFile for any problem."""
    file = read(data)
    if file.problems:
        raise BadFile(file.problems[0])
    model = network(file, device)
    for _, group in sorted(file.groups.items()):
        for _ in read_group(model, file, group):
            pass
