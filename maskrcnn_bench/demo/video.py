"""Reading the pictures of a video and writing a video of pictures, by PyAV. Sound is left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from PIL import Image

from .files import MARK

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".mts", ".3gp")
_TICKS = 60_000
"""Of the clock of videos that are written, a second; MPEG-4 has room for 65535."""
_USUAL_RATE = Fraction(25)


class Frame(NamedTuple):
    """A picture of a video.

    Attributes:
        index: from 0.
        seconds: when it is shown, from the first picture on.
        picture: RGB, turned upright.
    """

    index: int
    seconds: float
    picture: Image.Image


def is_video(path: str | os.PathLike) -> bool:
    """Whether a name is that of a video."""
    return Path(path).suffix.lower() in SUFFIXES


def pyav() -> ModuleType:
    """The library that knows videos."""
    try:
        import av
    except ImportError as error:
        raise ImportError(f'videos need PyAV ({error}): pip install -e ".[demo]" in the checkout') from None
    return av


class VideoReader:
    """The pictures of a video, one after the other.

    Attributes:
        rate: pictures a second, on average.
        expected: how many pictures the file says it has; 0 where it does not say.
        fault: after the last picture, what was wrong with the file; empty for a whole one.
    Raises:
        OSError: when the file cannot be opened or has no picture that can be decoded.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._av = pyav()
        try:
            # Titles of old files are in whatever coding their writer had.
            self._container = self._av.open(self.path, metadata_errors="replace")
        except self._av.error.FFmpegError as error:
            remedy = "copy it again from its source" if os.path.isfile(self.path) else "there is no such file"
            raise OSError(f"{self.path} cannot be opened as a video ({error.strerror}); {remedy}") from None
        if not self._container.streams.video:
            self._container.close()
            raise OSError(f"{self.path} has no pictures, only sound or text")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.rate = self._stream.average_rate or self._stream.guessed_rate or _USUAL_RATE
        self.expected = self._stream.frames or round(self._duration() * self.rate)
        self.fault = ""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: Any) -> None:
        self._container.close()

    def _duration(self) -> float:
        """Of the pictures, seconds; 0 where the file does not say. Sound may last longer than they."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        alone = len(self._container.streams) == 1
        return self._container.duration / self._av.time_base if alone and self._container.duration else 0.0

    def __iter__(self) -> Iterator[Frame]:
        first, index, broken = None, -1, 0
        for index, frame in enumerate(self._decoded()):
            if frame is None:
                broken += 1
                continue
            time = frame.time if frame.time is not None else index / float(self.rate)
            first = time if first is None else first
            picture = frame.to_image()
            # Angles are counted against the clock, as Pillow counts them.
            picture = picture.rotate(frame.rotation, expand=True) if getattr(frame, "rotation", 0) else picture
            yield Frame(index - broken, max(time - first, 0.0), picture)
        good = index + 1 - broken
        if not good:
            raise OSError(f"{self.path} has no picture that can be decoded; copy it again from its source")
        self.fault = self._verdict(good, broken)

    def _decoded(self) -> Iterator[Any]:
        """Decoded pictures, and None for each piece that cannot be decoded."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, self._av.error.FFmpegError):
                return
            try:
                yield from packet.decode()
            except self._av.error.FFmpegError:
                yield None

    def _verdict(self, good: int, broken: int) -> str:
        # Editors cut to pictures that cannot be decoded alone, and durations are rounded.
        if self.expected and good + broken < self.expected * 0.98 - 2:
            return f"{self.path} is cut short: {good} of about {self.expected} pictures could be read; copy it again from its source"
        if broken:
            return f"{self.path} is damaged: {good} pictures could be read, {broken} could not"
        return ""


class VideoWriter:
    """An MP4 file that appears when it is whole.

    Args:
        path: of the file.
        rate: pictures a second, on average; each one comes with its own time.
    """

    def __init__(self, path: str | os.PathLike, rate: Fraction):
        self.path = os.fspath(path)
        self.rate = rate
        self._beside = f"{self.path}.{os.getpid()}.tmp"
        self._av = pyav()
        self._container: Any = None
        self._stream: Any = None
        self._size = (0, 0)
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if self._container is None:
            return
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if kind is None:
                os.replace(self._beside, self.path)
        finally:
            Path(self._beside).unlink(missing_ok=True)

    def add(self, picture: Image.Image, seconds: float) -> None:
        """Writes the next picture; the first one's size is that of the video."""
        if self._container is None:
            self._open(picture)
        # The pictures of a stream may change their size.
        picture = picture if picture.size == self._size else picture.resize(self._size)
        frame = self._av.VideoFrame.from_image(picture.crop((0, 0, self._stream.width, self._stream.height)))
        self._last = frame.pts = max(round(seconds * _TICKS), self._last + 1)
        frame.time_base = Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def _open(self, picture: Image.Image) -> None:
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        self._container = self._av.open(self._beside, "w", format="mp4", options={"movflags": "+faststart"})
        self._container.metadata["comment"] = MARK
        if "libx264" in self._av.codecs_available:
            self._stream = self._container.add_stream("libx264", rate=self.rate, options={"crf": "20", "preset": "veryfast"})
        else:
            self._stream = self._container.add_stream("mpeg4", rate=self.rate, options={"qscale": "3"})
        self._size = picture.size
        # The usual format stores colours for two pixels each way.
        self._stream.width, self._stream.height = (max(side - side % 2, 2) for side in picture.size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
