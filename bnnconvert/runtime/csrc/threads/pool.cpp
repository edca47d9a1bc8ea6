#include "threads/pool.h"

#include <chrono>

namespace bnn {
namespace {

// As long as a step of a network takes: workers stay awake between steps and sleep between runs.
constexpr auto kSpin = std::chrono::microseconds(50);

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

template <class Condition>
bool spin_until(Condition&& condition) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; i++) {
            if (condition()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

}  // namespace

Pool::Pool(int threads) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
    {
        std::lock_guard lock(mutex_);
        stop_.store(true, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::share(int parts, Call call, const void* context) {
    parts_ = parts, call_ = call, context_ = context;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
        std::lock_guard lock(mutex_);  // so that no worker falls asleep between its last look and this
        job_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    take_parts();
    while (busy_.load(std::memory_order_acquire) > 0) pause();
}

void Pool::take_parts() {
    for (int part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) call_(context_, part);
}

void Pool::work() {
    uint64_t seen = 0;
    const auto called = [&] {
        return job_.load(std::memory_order_acquire) != seen || stop_.load(std::memory_order_acquire);
    };
    for (;;) {
        if (!spin_until(called)) {
            std::unique_lock lock(mutex_);
            wake_.wait(lock, called);
        }
        if (stop_.load(std::memory_order_acquire)) return;
        seen = job_.load(std::memory_order_acquire);
        take_parts();
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace bnn
