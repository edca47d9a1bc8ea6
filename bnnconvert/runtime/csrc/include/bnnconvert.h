/* The native engine of bnnconvert: opens a compiled plan and runs it.
 *
 * All functions are safe to call from several threads on several engines. One engine runs one call at a time; a second
 * one meanwhile gets BNN_BUSY. No function throws, and bnn_run allocates no memory. An engine must be one that was opened.
 */
#ifndef BNNCONVERT_H
#define BNNCONVERT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define BNN_API __attribute__((visibility("default")))
#else
#define BNN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bnn_engine bnn_engine;

typedef enum {
    BNN_OK = 0,
    BNN_BAD_PLAN = 1,  /* the bytes are no sound plan */
    BNN_BAD_CALL = 2,  /* an argument makes no sense */
    BNN_BUSY = 3,      /* the engine is running */
    BNN_NO_MEMORY = 4
} bnn_status;

/* One sentence about the last call of this thread that did not return BNN_OK. */
BNN_API const char* bnn_error(void);

/* The instruction sets that this build and this machine have, best first: 0, 1, ... until NULL. */
BNN_API const char* bnn_isa(int number);

/* Open a plan; its bytes are not needed afterwards. `isa` is a name from bnn_isa, or NULL for the best one, which the
 * environment variable BNNCONVERT_ISA may lower. With ":N" behind the name, for tests, each layer takes the N-th of the
 * ways that there are to compute it instead of the fastest, and threads share every step however small. */
BNN_API bnn_status bnn_open(const void* plan, size_t size, int threads, const char* isa, bnn_engine** engine);
BNN_API bnn_status bnn_open_file(const char* path, int threads, const char* isa, bnn_engine** engine);
BNN_API void bnn_close(bnn_engine* engine);

/* Inputs and outputs are float32 in the model's own order (samples, channels, height, width). */
BNN_API int bnn_inputs(const bnn_engine* engine);
BNN_API int bnn_outputs(const bnn_engine* engine);
/* Elements of one sample; -1 where there is no such input or output. */
BNN_API int64_t bnn_input_size(const bnn_engine* engine, int number);
BNN_API int64_t bnn_output_size(const bnn_engine* engine, int number);

BNN_API bnn_status bnn_run(bnn_engine* engine, int64_t samples, const float* const* inputs, float* const* outputs);

/* What the engine is made of: a step's layer, kernel and tile, all NULL where there is no such step, and the time in
 * seconds that it took of the last run after bnn_profile(engine, 1), over all samples. */
typedef struct {
    const char* layer;
    const char* kernel;
    const char* tile;
    double seconds;
} bnn_step;

BNN_API int bnn_steps(const bnn_engine* engine);
BNN_API bnn_step bnn_step_at(const bnn_engine* engine, int number);
BNN_API void bnn_profile(bnn_engine* engine, int on);
/* Bytes of all values between the steps. */
BNN_API int64_t bnn_memory(const bnn_engine* engine);

/* Binary multiply-adds a second that one thread does on registers alone, by XOR, popcount and add: the bound of a plain
 * kernel, measured in about ten milliseconds. 0 for an instruction set that this machine has not. */
BNN_API double bnn_peak(const char* isa);
/* Cycles a second of the processor that this thread is on, measured in a few milliseconds. */
BNN_API double bnn_clock(void);

#ifdef __cplusplus
}
#endif

#endif
