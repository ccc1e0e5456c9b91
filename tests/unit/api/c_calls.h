/* SPDX-License-Identifier: Apache-2.0
 * Calls of the C surface made by a C compiler; api_test.cpp looks at what they give. */
#ifndef QUADRILLE_TESTS_C_CALLS_H
#define QUADRILLE_TESTS_C_CALLS_H

#include "quadrille/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A description of weights that is fine but for the GPU that it needs; pointers into host memory of the file. */
void c_weights_desc(qd_weights_desc* desc);
/* Prepares them with bare handles that no device knows. */
qd_result c_prepare(const qd_weights_desc* desc, qd_weights** weights, qd_error* error);
/* The first linear layer of examples/linear.c on a GPU; 0 where every output is right, else the count of wrong ones,
 * -1 where a call failed (`error` says which). */
int c_linear_of_ones(qd_error* error);

#ifdef __cplusplus
}
#endif

#endif
