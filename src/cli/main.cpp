// nibble: the command line.
#include <cstdio>

int main() {
    std::puts("nibble 0.1.0");
    return 0;
}
