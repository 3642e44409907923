"""CUDA's caching allocator in a few rules: from a list of allocations to what torch would report.

The rules and constants are those of c10/cuda/CUDACachingAllocator in PyTorch, in their default
setting: `torch.cuda.memory_allocated` counts blocks of the pool, not the bytes that were asked for.
"""

import bisect

from qlora_kit.memory.gpus import MIB

SMALLEST = 512  # every size is rounded up to a multiple of this
SMALL = MIB  # up to here a request is served from small segments
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB  # for requests below LARGE
LARGE = 10 * MIB
STEP = 2 * MIB  # larger segments are multiples of this


def rounded(size):
    """Bytes that the allocator counts for a request of `size` bytes."""
    return -(-size // SMALLEST) * SMALLEST


def segment(size):
    """Bytes that the allocator takes from the GPU to serve a request of a rounded `size`."""
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < LARGE:
        return LARGE_SEGMENT
    return -(-size // STEP) * STEP


class Pool:
    """One pool of blocks: free ones by size, and the neighbours of each within its segment."""

    def __init__(self, small):
        self.least_rest = SMALLEST if small else SMALL + 1
        self.free = []  # (size, address), sorted: the best fit comes first
        self.blocks = {}  # address: [size, address before, address after, in use]

    def allocate(self, size, address):
        """Serve a request. Returns (address, bytes counted, bytes taken from the GPU)."""
        place = bisect.bisect_left(self.free, (size, 0))
        taken = 0
        if place < len(self.free):
            _, address = self.free.pop(place)
        else:
            taken = segment(size)
            self.blocks[address] = [taken, None, None, True]
        block = self.blocks[address]
        block[3] = True
        rest = block[0] - size
        if rest >= self.least_rest:
            after = block[2]
            self.blocks[address + size] = [rest, address, after, False]
            if after is not None:
                self.blocks[after][1] = address + size
            block[0], block[2] = size, address + size
            bisect.insort(self.free, (rest, address + size))
        return address, block[0], taken

    def release(self, address):
        """Free a block and merge it with free neighbours. Returns the bytes that it counted."""
        block = self.blocks[address]
        counted = block[0]
        block[3] = False
        for neighbour, left in ((block[1], True), (block[2], False)):
            if neighbour is None or self.blocks[neighbour][3]:
                continue
            other = self.blocks[neighbour]
            self.free.pop(bisect.bisect_left(self.free, (other[0], neighbour)))
            first, second = (neighbour, address) if left else (address, neighbour)
            kept, gone = self.blocks[first], self.blocks.pop(second)
            kept[0] += gone[0]
            kept[2] = gone[2]
            if gone[2] is not None:
                self.blocks[gone[2]][1] = first
            address = first
        bisect.insort(self.free, (self.blocks[address][0], address))
        return counted


def replay(events, start=0):
    """The peaks of a trace: (allocated, reserved) in bytes, counted from event number `start` on.

    events: (name of the storage, bytes) for each allocation, with minus the bytes for its release.
    Nothing is ever given back to the GPU, as in a process that does not run out of memory.
    """
    pools = {True: Pool(True), False: Pool(False)}
    where = {}
    allocated = reserved = peak = fresh = 0
    for number, (name, size) in enumerate(events):
        if size > 0:
            size = rounded(size)
            small = size <= SMALL
            address, counted, taken = pools[small].allocate(size, fresh)
            fresh += taken
            where[name] = small, address
            allocated += counted
            reserved += taken
        else:
            small, address = where.pop(name)
            allocated -= pools[small].release(address)
        if number >= start:
            peak = max(peak, allocated)
    return peak, reserved
