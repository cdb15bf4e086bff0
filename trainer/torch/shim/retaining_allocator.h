// libtorch's CPU memory, kept for the next step and backed by huge pages.
//
// A training step frees and asks for the same gigabytes again and again. glibc gives large blocks back to the system at once, so each
// step pays a page fault for every 4 KiB of them (170,000 to 445,000 a step for a model of 61 M parameters). Here large blocks come
// from regions that are never given back while they are in use, in pages of 2 MiB where the system allows it: no fault in steady state,
// and fewer misses of the address cache.
//
// Best fit over free blocks ordered by size, neighbours merged when freed, as CUDA's caching allocator does. Small blocks stay with
// the C library, which keeps them anyway.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <set>
#include <vector>

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/alignment.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>

namespace lcl {

class RetainingAllocator final : public c10::Allocator {
public:
  // One for the process; never destroyed, because tensors in statics outlive everything.
  static RetainingAllocator &instance() {
    static auto *allocator = new RetainingAllocator;
    return *allocator;
  }

  c10::DataPtr allocate(size_t bytes) override {
    void *data = bytes < least_bytes ? c10::alloc_cpu(bytes) : take(bytes);
    return {data, data, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void *target, const void *source, std::size_t count) const override { default_copy_data(target, source, count); }

  // Bytes of all regions.
  size_t mapped_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t sum = 0;
    for (const Region &region : regions_) {
      sum += region.bytes;
    }
    return sum;
  }

private:
  // From here on glibc would map blocks of their own (its threshold starts at 128 KiB).
  static constexpr size_t least_bytes = size_t{128} << 10;
  // Blocks are multiples of it: the alignment libtorch promises its kernels, and room for a header.
  static constexpr size_t unit = 64;
  static_assert(unit % c10::gAlignment == 0, "libtorch's alignment must divide ours");
  static constexpr size_t huge_page = size_t{2} << 20;
  // Address space of a region; memory is only used once touched. Large, so that blocks of many sizes can share it.
  static constexpr size_t region_bytes = size_t{1} << 30;
  // A rest smaller than this is not split off.
  static constexpr size_t least_rest = size_t{64} << 10;

  // Before every block.
  struct alignas(unit) Block {
    size_t bytes; // with this header
    Block *before; // neighbour in the same region
    Block *after;
    bool used;

    void *data() { return reinterpret_cast<char *>(this) + sizeof(Block); }
    static Block *of(void *data) { return reinterpret_cast<Block *>(static_cast<char *>(data) - sizeof(Block)); }
  };
  static_assert(sizeof(Block) == unit, "data behind a header must be aligned");

  // Lowest address first among equals: what lives long gathers at one end.
  struct BySize {
    using is_transparent = void;
    bool operator()(const Block *a, const Block *b) const { return a->bytes != b->bytes ? a->bytes < b->bytes : a < b; }
    bool operator()(const Block *a, size_t bytes) const { return a->bytes < bytes; }
    bool operator()(size_t bytes, const Block *b) const { return bytes < b->bytes; }
  };

  struct Region {
    char *begin;
    size_t bytes;
  };

  static size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

  void *take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(bytes < SIZE_MAX / 2, "cannot allocate ", bytes, " bytes");
    const size_t wanted = rounded(bytes, unit) + sizeof(Block);
    const auto found = free_.lower_bound(wanted);
    Block *block = found == free_.end() ? map_region(wanted) : *found;
    if (found != free_.end()) {
      free_.erase(found);
    }
    if (block->bytes - wanted >= least_rest) {
      auto *rest = new (reinterpret_cast<char *>(block) + wanted) Block{block->bytes - wanted, block, block->after, false};
      if (rest->after != nullptr) {
        rest->after->before = rest;
      }
      block->after = rest;
      block->bytes = wanted;
      free_.insert(rest);
    }
    block->used = true;
    return block->data();
  }

  static void give_back(void *data) {
    RetainingAllocator &allocator = instance();
    if (data == nullptr) {
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(allocator.mutex_);
      if (allocator.owns(data)) {
        allocator.release(Block::of(data));
        return;
      }
    }
    c10::free_cpu(data);
  }

  bool owns(const void *data) const {
    const auto *address = static_cast<const char *>(data);
    for (const Region &region : regions_) {
      if (address >= region.begin && address < region.begin + region.bytes) {
        return true;
      }
    }
    return false;
  }

  void release(Block *block) {
    block->used = false;
    if (Block *after = block->after; after != nullptr && !after->used) {
      free_.erase(after);
      join(block, after);
    }
    if (Block *before = block->before; before != nullptr && !before->used) {
      free_.erase(before);
      join(before, block);
      block = before;
    }
    free_.insert(block);
  }

  static void join(Block *first, Block *second) {
    first->bytes += second->bytes;
    first->after = second->after;
    if (first->after != nullptr) {
      first->after->before = first;
    }
  }

  // A new region as one block that is in no list yet.
  Block *map_region(size_t wanted) {
    const size_t bytes = rounded(std::max(wanted, region_bytes), huge_page);
    void *memory = map(bytes);
    if (memory == MAP_FAILED) {
      drop_free_regions();
      memory = map(bytes);
    }
    size_t got = bytes;
    if (memory == MAP_FAILED && bytes > rounded(wanted, huge_page)) {
      // Where address space is limited, no more than needed.
      got = rounded(wanted, huge_page);
      memory = map(got);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, memory != MAP_FAILED, "not enough memory: could not get ", got, " bytes from the system");
    regions_.push_back({static_cast<char *>(memory), got});
    return new (memory) Block{got, nullptr, nullptr, false};
  }

  static void *map(size_t bytes) {
    // One huge page more, to begin at a multiple of one.
    void *memory = mmap(nullptr, bytes + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      return MAP_FAILED;
    }
    const auto address = reinterpret_cast<uintptr_t>(memory);
    const size_t skipped = rounded(address, huge_page) - address;
    if (skipped > 0) {
      munmap(memory, skipped);
    }
    char *begin = static_cast<char *>(memory) + skipped;
    if (skipped < huge_page) {
      munmap(begin + bytes, huge_page - skipped);
    }
#ifdef MADV_HUGEPAGE
    madvise(begin, bytes, MADV_HUGEPAGE); // a wish: without it pages are small and everything else holds
#endif
    return begin;
  }

  void drop_free_regions() {
    for (size_t i = 0; i < regions_.size();) {
      auto *first = reinterpret_cast<Block *>(regions_[i].begin);
      if (!first->used && first->after == nullptr) {
        free_.erase(first);
        munmap(regions_[i].begin, regions_[i].bytes);
        regions_.erase(regions_.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        ++i;
      }
    }
  }

  std::mutex mutex_;
  std::set<Block *, BySize> free_;
  std::vector<Region> regions_;
};

} // namespace lcl
