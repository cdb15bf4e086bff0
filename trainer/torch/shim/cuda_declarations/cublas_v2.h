// libtorch's CUDA headers name handles and states of cuBLAS, cuSPARSE and cuSOLVER, whose own headers come with half a gigabyte of
// libraries. These declare the names and nothing else; nothing of those libraries is called through them.
#pragma once
typedef struct cublasContext *cublasHandle_t;
typedef int cublasStatus_t;
