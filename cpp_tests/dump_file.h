// A file of a dump, read without eplb: the header's text, and tensors by name.
#ifndef EPLB_TESTS_DUMP_FILE_H
#define EPLB_TESTS_DUMP_FILE_H

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "files.h"

/// The bytes of a file without the time when it was written.
inline std::string undated_file(const std::filesystem::path &path) {
    std::string bytes = read_file(path);
    const std::string start = "\"written_at\":\"";
    const size_t at = bytes.find(start);
    if (at == std::string::npos) {
        throw std::runtime_error(path.string() + " does not say when it was written");
    }
    return bytes.erase(at, start.size() + std::string("1970-01-01T00:00:00Z\"").size());
}

class dump_file {
  public:
    explicit dump_file(const std::filesystem::path &path) : bytes_(read_file(path)) {
        if (bytes_.size() < sizeof(size_)) {
            throw std::runtime_error(path.string() + " is missing or not a safetensors file");
        }
        std::memcpy(&size_, bytes_.data(), sizeof(size_));
        header_ = bytes_.substr(sizeof(size_), size_);
    }

    const std::string &header() const { return header_; }
    /// Bytes after the header.
    size_t data_bytes() const { return bytes_.size() - sizeof(size_) - header_.size(); }
    size_t num_tensors() const {
        size_t number = 0;
        for (size_t at = 0; (at = header_.find("\"dtype\"", at)) != std::string::npos; at++) {
            number++;
        }
        return number;
    }
    bool has(const std::string &name) const { return header_.find("\"" + name + "\":") != std::string::npos; }
    /// A value of __metadata__; "(none)" without the key.
    std::string metadata(const std::string &key) const {
        const std::string start = "\"" + key + "\":\"";
        const size_t at = header_.find(start);
        return at == std::string::npos
                   ? "(none)"
                   : header_.substr(at + start.size(),
                                    header_.find('"', at + start.size()) - at - start.size());
    }
    std::vector<int64_t> tensor(const std::string &name) const {
        const std::string offsets = "\"data_offsets\":[";
        size_t at = header_.find("\"" + name + "\":");
        if (at == std::string::npos) {
            throw std::runtime_error("no tensor " + name);
        }
        at = header_.find(offsets, at) + offsets.size();
        const size_t start = std::stoull(header_.substr(at));
        const size_t stop = std::stoull(header_.substr(header_.find(',', at) + 1));
        std::vector<int64_t> values((stop - start) / sizeof(int64_t));
        std::memcpy(values.data(), bytes_.data() + sizeof(size_) + header_.size() + start, stop - start);
        return values;
    }

  private:
    std::string bytes_, header_;
    uint64_t size_ = 0;
};

#endif
