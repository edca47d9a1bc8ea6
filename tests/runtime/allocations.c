/* Counts the allocations of ten runs after the first: allocations PLAN THREADS. Sanitizers would replace malloc, too. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "bnnconvert.h"

void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* old, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

static atomic_int allocations;

void* malloc(size_t size) { return atomic_fetch_add(&allocations, 1), __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return atomic_fetch_add(&allocations, 1), __libc_calloc(count, size); }
void* realloc(void* old, size_t size) { return atomic_fetch_add(&allocations, 1), __libc_realloc(old, size); }
void* aligned_alloc(size_t alignment, size_t size) {
    return atomic_fetch_add(&allocations, 1), __libc_memalign(alignment, size);
}
int posix_memalign(void** result, size_t alignment, size_t size) {
    *result = aligned_alloc(alignment, size);
    return *result ? 0 : 12;
}

int main(int argc, char** argv) {
    bnn_engine* engine = NULL;
    if (argc != 3 || bnn_open_file(argv[1], atoi(argv[2]), NULL, &engine) != BNN_OK) return 1;
    const int64_t samples = 3;
    float* input = calloc((size_t)(samples * bnn_input_size(engine, 0)), sizeof(float));
    float* output = calloc((size_t)(samples * bnn_output_size(engine, 0)), sizeof(float));
    const float* inputs[] = {input};
    float* outputs[] = {output};
    const int opening = atomic_load(&allocations);
    if (bnn_run(engine, samples, inputs, outputs) != BNN_OK) return 1;
    const int before = atomic_load(&allocations);
    for (int i = 0; i < 10; i++)
        if (bnn_run(engine, samples, inputs, outputs) != BNN_OK) return 1;
    printf("%d %d\n", opening, atomic_load(&allocations) - before);
    bnn_close(engine);
    free(input);
    free(output);
    return 0;
}
