#include "safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <stdexcept>

#include <nlohmann/json.hpp>

namespace {

size_t product(const std::vector<size_t> &shape) {
    return std::accumulate(shape.begin(), shape.end(), size_t{1}, std::multiplies<>());
}

std::string text(const std::vector<size_t> &shape) { return nlohmann::json(shape).dump(); }

/// BF16 is the upper half of an F32.
float from_bf16(uint16_t half) {
    const uint32_t bits = uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

} // namespace

safetensors::safetensors(std::string path) : path_(std::move(path)) {
    std::error_code error;
    const size_t file_size = std::filesystem::file_size(path_, error);
    if (error) {
        fail(error.message());
    }
    if (file_size < sizeof(uint64_t)) {
        fail("has " + std::to_string(file_size) + " bytes, a header size of 8 bytes expected");
    }
    const uint64_t header_size = read<uint64_t>(0, 1)[0];
    const size_t max_header_size = file_size - sizeof(uint64_t);
    if (header_size > max_header_size) {
        fail("has a header of " + std::to_string(header_size) + " bytes, at most " +
             std::to_string(max_header_size) + " expected");
    }
    const std::vector<char> header = read<char>(sizeof(uint64_t), header_size);
    const size_t data_begin = sizeof(uint64_t) + header_size, data_size = file_size - data_begin;
    try {
        const nlohmann::json json = nlohmann::json::parse(header.begin(), header.end());
        for (const auto &[name, entry] : json.items()) {
            if (name == "__metadata__") {
                continue;
            }
            const auto begin = entry.at("data_offsets").at(0).get<size_t>();
            const auto end = entry.at("data_offsets").at(1).get<size_t>();
            if (begin > end || end > data_size) {
                fail("tensor \"" + name + "\" is at bytes " + std::to_string(begin) + " to " +
                     std::to_string(end) + " of the data, which has " + std::to_string(data_size));
            }
            tensors_[name] = {entry.at("dtype"), entry.at("shape"), data_begin + begin, data_begin + end};
        }
    } catch (const nlohmann::json::exception &e) {
        fail(std::string("header: ") + e.what());
    }
}

std::vector<std::string> safetensors::names() const {
    std::vector<std::string> names;
    for (const auto &[name, tensor] : tensors_) {
        names.push_back(name);
    }
    return names;
}

std::vector<float> safetensors::f32(const std::string &name, const std::vector<size_t> &shape) const {
    return f32_range(name, shape, 0, product(shape));
}

std::vector<float> safetensors::f32_slice(const std::string &name, const std::vector<size_t> &shape,
                                          size_t index) const {
    if (index >= shape.at(0)) {
        fail("tensor \"" + name + "\" has no index " + std::to_string(index) + ", its shape is " +
             text(shape));
    }
    const size_t count = product(shape) / shape[0];
    return f32_range(name, shape, index * count, count);
}

std::vector<int32_t> safetensors::i32(const std::string &name, const std::vector<size_t> &shape) const {
    return read<int32_t>(find(name, "I32", shape).begin, product(shape));
}

std::vector<float> safetensors::f32_range(const std::string &name, const std::vector<size_t> &shape,
                                          size_t first, size_t count) const {
    if (find(name).dtype == "F32") {
        return read<float>(find(name, "F32", shape).begin + first * sizeof(float), count);
    }
    const tensor &found = find(name, "BF16", shape);
    const std::vector<uint16_t> halves = read<uint16_t>(found.begin + first * sizeof(uint16_t), count);
    std::vector<float> values(count);
    std::transform(halves.begin(), halves.end(), values.begin(), from_bf16);
    return values;
}

const safetensors::tensor &safetensors::find(const std::string &name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
        fail("has no tensor \"" + name + "\"");
    }
    return found->second;
}

const safetensors::tensor &safetensors::find(const std::string &name, const std::string &dtype,
                                             const std::vector<size_t> &shape) const {
    const tensor &found = find(name);
    if (found.dtype != dtype || found.shape != shape) {
        fail("tensor \"" + name + "\" is " + found.dtype + " " + text(found.shape) + ", " + dtype + " " +
             text(shape) + " expected");
    }
    const size_t size = product(shape) * (dtype == "BF16" ? sizeof(uint16_t) : sizeof(float));
    if (found.end - found.begin != size) {
        fail("tensor \"" + name + "\" has " + std::to_string(found.end - found.begin) + " bytes, " +
             std::to_string(size) + " expected");
    }
    return found;
}

template <class T> std::vector<T> safetensors::read(size_t begin, size_t count) const {
    std::vector<T> values(count);
    std::ifstream file(path_, std::ios::binary);
    file.seekg(static_cast<std::streamoff>(begin));
    file.read(reinterpret_cast<char *>(values.data()), static_cast<std::streamsize>(count * sizeof(T)));
    if (!file) {
        fail("cannot read " + std::to_string(count * sizeof(T)) + " bytes at byte " + std::to_string(begin));
    }
    return values;
}

void safetensors::fail(const std::string &what) const { throw std::runtime_error(path_ + ": " + what); }
