/* Run a compiled plan from C: no Python, no torch.
 *
 *     bnnconvert export --format plan --out model.plan
 *     cc host.c -I <csrc>/include -L <folder of the library> -lbnnconvert -o host
 *     ./host model.plan input.f32 output.f32 [THREADS [ISA]]
 *     ./host --isas
 *
 * The input file holds float32 numbers, any number of samples in the model's own order; the output file gets the same.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bnnconvert.h"

static int fail(const char* what, const char* why) {
    fprintf(stderr, "host: %s: %s\n", what, why);
    return 1;
}

/* Numbers of a file, and how many; NULL where it cannot be read. */
static float* read_numbers(const char* path, size_t* count) {
    FILE* file = fopen(path, "rb");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    const long bytes = ftell(file);
    rewind(file);
    *count = bytes < 0 ? 0 : (size_t)bytes / sizeof(float);
    float* numbers = malloc(*count * sizeof(float) + 1);
    if (bytes < 0 || !numbers || fread(numbers, sizeof(float), *count, file) != *count) {
        free(numbers);
        numbers = NULL;
    }
    fclose(file);
    return numbers;
}

/* Run the engine on a file of samples. */
static int run(bnn_engine* engine, const char* input_path, const char* output_path) {
    if (bnn_inputs(engine) != 1 || bnn_outputs(engine) != 1) return fail("plan", "it has several inputs or outputs");
    size_t count = 0;
    float* input = read_numbers(input_path, &count);
    if (!input) return fail(input_path, "cannot read it");
    const size_t sample = (size_t)bnn_input_size(engine, 0), samples = count / sample;
    const size_t made = samples * (size_t)bnn_output_size(engine, 0);
    float* output = malloc(made * sizeof(float) + 1);
    const float* inputs[] = {input};
    float* outputs[] = {output};
    int status = 0;
    if (count % sample != 0)
        status = fail(input_path, "its size is no multiple of a sample's");
    else if (!output)
        status = fail(input_path, "there is no memory for the result");
    else if (bnn_run(engine, (int64_t)samples, inputs, outputs) != BNN_OK)
        status = fail("run", bnn_error());
    if (status == 0) {
        FILE* file = fopen(output_path, "wb");
        const int is_written = file && fwrite(output, sizeof(float), made, file) == made;
        if (!file || fclose(file) != 0 || !is_written) status = fail(output_path, "cannot write it");
    }
    free(input);
    free(output);
    return status;
}

int main(int argc, char** argv) {
    if (argc == 2 && strcmp(argv[1], "--isas") == 0) {
        const char* isa;
        for (int i = 0; (isa = bnn_isa(i)) != NULL; i++) puts(isa);
        return 0;
    }
    if (argc < 4) return fail("usage", "host PLAN INPUT OUTPUT [THREADS [ISA]]");

    bnn_engine* engine = NULL;
    const int threads = argc > 4 ? atoi(argv[4]) : 1;
    if (bnn_open_file(argv[1], threads, argc > 5 ? argv[5] : NULL, &engine) != BNN_OK)
        return fail(argv[1], bnn_error());
    const int status = run(engine, argv[2], argv[3]);
    bnn_close(engine);
    return status;
}
