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

uint32_t job_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }

}  // namespace

Pool::Pool(int threads) {
    try {
        for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
    } catch (...) {
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
    {
        std::lock_guard lock(mutex_);
        stops_.store(true, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::share(int parts, Call call, const void* context) {
    call_ = call, context_ = context;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t job = job_of(ticket_.load(std::memory_order_relaxed)) + uint64_t{1};
    {
        std::lock_guard lock(mutex_);  // so that no worker falls asleep between its last look and this
        ticket_.store(job << 32 | static_cast<uint64_t>(parts) << 16, std::memory_order_release);
    }
    wake_.notify_all();
    take_parts();
    const auto is_done = [&] { return done_.load(std::memory_order_acquire) == parts; };
    while (!spin_until(is_done)) std::this_thread::yield();  // the others may be waiting for this processor
}

void Pool::take_parts() {
    for (;;) {
        const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
        const int part = ticket & 0xffff, parts = ticket >> 16 & 0xffff;
        if (part >= parts) return;
        call_(context_, part);
        done_.fetch_add(1, std::memory_order_release);
    }
}

void Pool::work() {
    uint32_t seen = 0;
    const auto called = [&] {
        return job_of(ticket_.load(std::memory_order_acquire)) != seen || stops_.load(std::memory_order_acquire);
    };
    for (;;) {
        if (!spin_until(called)) {
            std::unique_lock lock(mutex_);
            wake_.wait(lock, called);
        }
        if (stops_.load(std::memory_order_acquire)) return;
        seen = job_of(ticket_.load(std::memory_order_acquire));
        take_parts();
    }
}

}  // namespace bnn
