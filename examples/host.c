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
    if (bnn_inputs(engine) != 1 || bnn_outputs(engine) != 1) return fail(argv[1], "it has several inputs or outputs");

    FILE* file = fopen(argv[2], "rb");
    if (!file) return fail(argv[2], "cannot read it");
    fseek(file, 0, SEEK_END);
    const size_t bytes = (size_t)ftell(file), sample = 4 * (size_t)bnn_input_size(engine, 0);
    rewind(file);
    if (bytes % sample != 0) return fail(argv[2], "its size is no multiple of a sample's");
    const int64_t samples = (int64_t)(bytes / sample);
    const size_t out_bytes = (size_t)samples * 4 * (size_t)bnn_output_size(engine, 0);
    float *input = malloc(bytes + 1), *output = malloc(out_bytes + 1);
    if (!input || !output || fread(input, 1, bytes, file) != bytes) return fail(argv[2], "cannot read it");
    fclose(file);

    const float* inputs[] = {input};
    float* outputs[] = {output};
    if (bnn_run(engine, samples, inputs, outputs) != BNN_OK) return fail("run", bnn_error());
    bnn_close(engine);

    file = fopen(argv[3], "wb");
    if (!file || fwrite(output, 1, out_bytes, file) != out_bytes || fclose(file) != 0)
        return fail(argv[3], "cannot write it");
    free(input);
    free(output);
    return 0;
}
