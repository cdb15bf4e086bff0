// libtorch's ProcessGroupGloo.hpp includes five headers of gloo that no distribution of libtorch brings along. These declare what that
// header names and nothing else; nothing of gloo is ever made or called through them. collectives.cpp checks the sizes of the classes.
#pragma once
