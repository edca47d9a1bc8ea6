// Memory with an alignment and a slack at its end, as kernels read whole vectors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace bnn {

constexpr size_t kAlignment = 64;
constexpr size_t kSlack = 1024;  // kernels read whole vectors, the widest eight of 64 bytes at a time

struct Release {
    void operator()(void* memory) const { ::operator delete[](memory, std::align_val_t{kAlignment}); }
};

// Zeroed array of `count` elements.
template <class T>
class Array {
  public:
    Array() = default;
    explicit Array(size_t count) : count_(count) {
        const size_t bytes = count * sizeof(T) + kSlack;
        memory_.reset(static_cast<T*>(::operator new[](bytes, std::align_val_t{kAlignment})));
        std::memset(static_cast<void*>(memory_.get()), 0, bytes);
    }

    T* data() { return memory_.get(); }
    const T* data() const { return memory_.get(); }
    size_t size() const { return count_; }
    T& operator[](size_t i) { return memory_.get()[i]; }
    const T& operator[](size_t i) const { return memory_.get()[i]; }

  private:
    size_t count_ = 0;
    std::unique_ptr<T, Release> memory_;
};

}  // namespace bnn
