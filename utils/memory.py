"""What a run on the CPU asks of the C library's allocator."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
NEVER = -1


def keep_freed() -> None:
    """Let this process keep the memory that it frees, to use it again.

    glibc gives large blocks back to the system at once, and a training step takes its activations anew, page by page:
    fp32 steps of ResNet-50 were a third slower for it. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
