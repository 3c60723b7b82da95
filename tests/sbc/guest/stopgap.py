import fcntl, os, struct
import anyio
from mgota.core.geometry import Slot

class Slots:
    def __init__(self, paths): self.paths = paths
    def room(self, slot):
        fd = os.open(self.paths[slot], os.O_RDONLY)
        try: return os.lseek(fd, 0, os.SEEK_END)
        finally: os.close(fd)
    async def open_writer(self, slot, size): return Writer(os.open(self.paths[slot], os.O_RDWR))
    async def reopen_writer(self, slot, size, mark): raise NotImplementedError
    async def extent(self, slot): return self.room(slot)
    def read_blocking(self, slot, offset, size):
        fd = os.open(self.paths[slot], os.O_RDONLY)
        try: return os.pread(fd, size, offset)
        finally: os.close(fd)

class Writer:
    def __init__(self, fd): self.fd = fd
    def write_blocking(self, chunk): os.write(self.fd, chunk)
    async def write(self, chunk): await anyio.to_thread.run_sync(self.write_blocking, chunk)
    async def finish(self):
        await anyio.to_thread.run_sync(os.fsync, self.fd); os.posix_fadvise(self.fd,0,0,os.POSIX_FADV_DONTNEED); os.close(self.fd)
    async def abort(self): os.close(self.fd)

class Dog:
    stoppable = True
    limit = 20.0
    def __init__(self):
        self.fd = os.open("/dev/watchdog", os.O_WRONLY)
        b = bytearray(4); fcntl.ioctl(self.fd, 0x80045702, b); self.bootstatus = struct.unpack("i", b)[0]
    async def arm(self, timeout):
        fcntl.ioctl(self.fd, 0xC0045706, bytearray(struct.pack("i", max(1, int(timeout))))); await self.feed()
    async def feed(self): fcntl.ioctl(self.fd, 0x80045705, bytearray(4))
    async def disarm(self):
        os.write(self.fd, b"V"); os.close(self.fd)
