// A few threads that share the work of one step. Not OpenMP: torch brings its own, and two of them spin for one core.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace bnn {

class Pool {
  public:
    // The caller is one of the threads, so `threads` - 1 are started. Raises: std::system_error.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls task(part) for each part in [0, parts), some of them at the same time; returns when all are done. At most
    // kMaxParts parts.
    template <class Task>
    void run(int parts, const Task& task) {
        if (parts <= 1 || workers_.empty()) {
            for (int part = 0; part < parts; part++) task(part);
            return;
        }
        share(parts, [](const void* context, int part) { (*static_cast<const Task*>(context))(part); }, &task);
    }

    static constexpr int kMaxParts = 1 << 14;

  private:
    using Call = void (*)(const void* context, int part);

    void share(int parts, Call call, const void* context);
    void work();
    void take_parts();
    void stop();

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> ticket_{0};  // job's number (32 bits), its parts (16), and the next one to take (16)
    std::atomic<int> done_{0};         // parts of the job
    std::atomic<bool> stops_{false};
    // Of the job; read only by those who hold one of its parts, so a thread that comes late reads nothing.
    Call call_ = nullptr;
    const void* context_ = nullptr;
};

}  // namespace bnn
